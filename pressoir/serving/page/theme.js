// Before anything is drawn: the reader's own choice of light or dark, where one was made on an earlier visit.
try {
  const theme = localStorage.getItem("pressoir-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be refused; the system's preference holds then.
}
