// WCAG 2's contrast of every visible text with what is behind it, and of the borders of controls; as [name, ratio].
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (x, y) => {
    const [a, b] = [light(x), light(y)].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const name = (e) => `${e.tagName} ${e.id} ${e.className} ${e.textContent.trim().slice(0, 20)}`;
  const text = [...document.querySelectorAll('body *')]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => [name(e), ratio(rgb(getComputedStyle(e).color), behind(e))]);
  const fields = [...document.querySelectorAll('textarea, select, button:not(.examples button, .again)')]
    .filter((e) => e.checkVisibility())
    .map((e) => [name(e), ratio(rgb(getComputedStyle(e).borderTopColor), behind(e.parentElement))]);
  return { text, fields };
}
