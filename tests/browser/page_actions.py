"""What the tests of the page do again and again."""

HOSTILE = "<img src=x onerror=alert(1)>"


def opened(page):
    """The page, its tiers known."""
    page.locator("#tier-a option").first.wait_for(state="attached")
    return page


def ask(page, text):
    """Type a text, submit it, and wait for both answers."""
    before = page.locator("#history li").count()
    page.fill("#text", text)
    page.click("#submit")
    page.wait_for_function("n => document.querySelectorAll('#history li').length > n", arg=before)


def number(page, name):
    """The number that an element shows."""
    return float(page.text_content(name).replace(",", "").replace("×", "").strip())
