"""A server with tiny models, a Chromium, and the page opened in it."""

import shutil
import socket
import threading
import time

import pytest
from page_actions import HOSTILE, opened

from pressoir.serving.config import ServingConfig, resolve
from pressoir.store.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def classifier(tiny_bert, folder, labels, seed):
    """A classifier whose answers vary with the text."""
    import torch

    from pressoir.models import loading

    torch.manual_seed(seed)
    model = loading.load_classifier(tiny_bert, labels=labels)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    loading.save_model(model, folder)
    loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)
    return str(folder)


@pytest.fixture(scope="module")
def address(browser, tiny_bert, tiny_llama, tiny_qwen2, tmp_path_factory):
    """Where a server stands: three classifiers, one of hostile labels and folder, and two language models."""
    import uvicorn

    from pressoir.serving.http.app import create_app

    folder = tmp_path_factory.mktemp("page")
    known = ["negative", "positive"]
    references = {
        "teacher": classifier(tiny_bert, folder / "teacher", known, 0),
        "compressed": classifier(tiny_bert, folder / "compressed", known, 1),
        "hostile": classifier(tiny_bert, folder / HOSTILE, [HOSTILE, f"{HOSTILE}2"], 2),
        "llama": str(tiny_llama),
        "qwen": str(tiny_qwen2),
    }
    tiers = {name: {"model": model} for name, model in references.items()}
    config = ServingConfig.model_validate({"tiers": tiers, "isolation": "thread", "threads": 1})
    app = create_app(resolve(config, Store(folder / "home")))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
    listening.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium; install Debian's package `chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without its own sandbox, which root may not have; the pages are ours.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Open the page; whatever it complains of in the console fails the test."""
    contexts, complaints = [], []

    def open_at(width=1280, route=None, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        if route:
            page.route(*route)
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert [text for text in complaints if "Failed to load resource" not in text] == []


@pytest.fixture
def page(visit):
    return opened(visit())
