"""The comparison page in a real Chromium, on a real server with tiny models."""

import json
import re
from pathlib import Path

import pytest
from page_actions import HOSTILE, ask, number, opened

pytestmark = pytest.mark.browser


def test_both_models_answer_and_the_statistics_change(page):
    assert page.text_content("#about-a").startswith("teacher · PyTorch · 0.")
    before = number(page, "#requests")
    ask(page, "the film was good and great")
    ask(page, "the meal was awful and cold")
    for side in "ab":
        answer = page.locator(f"#answer-{side}")
        assert answer.locator(".label b").text_content() in ("negative", "positive")
        shares = [float(text.split()[0]) for text in answer.locator(".value").all_text_contents()]
        assert len(shares) == 2
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert re.fullmatch(r"[\d.]+\sms for this text", answer.locator(".took").text_content())
        lengths = "bars => bars.map(bar => parseFloat(bar.style.inlineSize))"
        widths = answer.locator(".bar i").evaluate_all(lengths)
        assert widths == pytest.approx(shares, abs=0.1)
    assert page.text_content("#verdict span") in ("same label", "different labels")
    assert number(page, "#requests") == before + 2
    assert "95 % interval" in page.text_content("#interval")
    assert number(page, "#speedup") > 0
    assert "teacher" in page.text_content("#size-bars")
    said = page.text_content("#status")
    assert re.match(r"teacher: (neg|pos)ative, .*%, .*ms; compressed: ", said)


def test_an_example_is_compared_by_a_click_and_a_history_entry_again(page):
    labels = page.locator("#examples dt").all_text_contents()
    assert labels == ["Positive", "Negative", "Neutral"]
    page.locator("#examples button").first.click()
    page.wait_for_selector("#history li")
    assert page.input_value("#text") == page.locator("#examples button").first.text_content()
    page.fill("#text", "")
    page.click("#history .again")
    page.wait_for_selector("#history li:nth-child(2)")
    page.click("#clear")
    assert page.locator("#history li").count() == 0


def test_any_two_tiers_of_a_task_can_be_chosen(page):
    assert page.locator("#tier-a option").all_text_contents() == ["teacher", "compressed", "hostile"]
    page.select_option("#tier-b", "hostile")
    ask(page, "the film was good")
    assert "hostile" in page.text_content("#history li")
    page.select_option("#tier-a", "hostile")  # what the other side has: they change sides
    assert (page.input_value("#tier-a"), page.input_value("#tier-b")) == ("hostile", "teacher")


def test_the_dashboard_tells_what_others_compare(page, address):
    before = number(page, "#requests")
    body = {"texts": ["the film was good"], "tiers": ["teacher", "compressed"]}
    assert page.request.post(f"{address}compare", data=body).ok
    page.wait_for_function("n => Number(document.querySelector('#requests').textContent) > n", arg=before)


def test_hostile_text_stays_text(page):
    hostile = "the <img src=x onerror=alert(1)> was <script>alert(2)</script> good"
    page.select_option("#tier-b", "hostile")
    assert page.text_content("#about-b").startswith(HOSTILE)
    ask(page, hostile)
    assert page.text_content("#history .again") == hostile
    assert page.text_content("#answer-b .label b").startswith(HOSTILE)
    page.click("#batch summary")
    page.fill("#lines", f"{hostile}\nanother")
    page.click("text=Compare all")
    page.wait_for_selector("#batch-result table")
    assert hostile in page.text_content("#batch-result")
    page.check("text=Generate")
    ask(page, hostile)
    assert hostile in page.text_content("#answer-a .stream")
    assert page.evaluate("document.querySelectorAll('main img, main script, [onerror]').length") == 0


def test_many_lines_are_compared_and_summed_up(page):
    page.click("#batch summary")
    page.fill("#lines", "\n\n".join(f"the film was good and {word}" for word in ("warm cold " * 10).split()))
    before = number(page, "#requests")
    page.click("text=Compare all")
    page.wait_for_selector("#batch-result table")
    summary, lines = page.locator("#batch-result table").all()
    told = summary.locator("caption").text_content()
    assert told.startswith("20 lines, the same label on ")
    assert "95 % interval" in told
    rows = {
        row.split("\t")[0]: row.split("\t")[1:] for row in summary.locator("tbody").inner_text().split("\n")
    }
    counted = [rows[label] for label in ("negative", "positive") if label in rows]
    assert [sum(int(row[side]) for row in counted) for side in (0, 1)] == [20, 20]
    assert {"Mean confidence", "Median time"} <= rows.keys()
    assert lines.locator("tbody tr").count() == 20
    differing = [row.endswith("different") for row in lines.locator("tbody tr").all_inner_texts()]
    assert differing == sorted(differing, reverse=True)
    assert number(page, "#requests") == before + 20
    assert page.text_content("#history li").startswith("20 lines at once")


def test_an_empty_batch_is_refused_in_words(page):
    page.click("#batch summary")
    page.click("text=Compare all")
    assert page.text_content("#alert") == "There is no line to compare."


def test_the_history_is_exported_as_json(page):
    ask(page, 'the film was "good"')
    page.click("#batch summary")
    page.fill("#lines", "the meal was cold\nthe song was fine")
    page.click("text=Compare all")
    page.wait_for_selector("#history li:nth-child(2)")
    with page.expect_download() as download:
        page.click("#export")
    content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert re.fullmatch(r"pressoir-\d{14}\.json", download.value.suggested_filename)
    assert (content["format"], content["version"]) == ("pressoir-comparison", 1)
    assert [tier["tier"] for tier in content["tiers"]] == ["teacher", "compressed"]
    assert len(content["tiers"][0]["digest"]) == 64
    assert content["statistics"]["requests"] >= 3
    one, many = content["history"]
    assert (one["kind"], one["text"]) == ("classification", 'the film was "good"')
    assert [answer["tier"] for answer in one["answers"]] == ["teacher", "compressed"]
    assert sum(one["answers"][0]["probabilities"].values()) == pytest.approx(1)
    assert (many["kind"], many["summary"]["lines"]) == ("batch", 2)
    assert [result["text"] for result in many["results"]] == ["the meal was cold", "the song was fine"]


class TestLanguageModels:
    @pytest.fixture
    def page(self, page):
        page.check("text=Generate")
        page.fill("#tokens", "12")
        return page

    def test_two_streams_side_by_side(self, page):
        assert page.locator("#tier-a option").all_text_contents() == ["llama", "qwen"]
        assert not page.is_visible("#batch")
        ask(page, "the film was")
        for side in "ab":
            text = page.text_content(f"#answer-{side} .stream")
            assert text.startswith("the film was")
            assert len(text) > len("the film was")
            took = page.text_content(f"#answer-{side} .took")
            assert re.search(r"ms a token, \d+ tokens?; the first after [\d.]+\sms", took)
        assert re.match(r"same text|differ after \d+ characters?", page.text_content("#verdict span"))
        assert number(page, "#requests") == 1
        assert number(page, "#speedup") > 0
        ask(page, "the film was")
        assert number(page, "#requests") == 2
        with page.expect_download() as download:
            page.click("#export")
        content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        assert content["statistics"]["requests"] == len(content["history"]) == 2
        assert content["statistics"]["ms_per_token_p50"].keys() == {"llama", "qwen"}
        assert content["history"][0]["answers"][1]["tokens"] == 12

    def test_the_text_after_which_they_differ_is_marked(self, page):
        ask(page, "the film was")
        common = int(re.search(r"\d+", page.text_content("#verdict span"))[0])  # random models never agree
        texts = [page.text_content(f"#answer-{side} .stream").removeprefix("the film was") for side in "ab"]
        marked = [page.text_content(f"#answer-{side} mark") for side in "ab"]
        assert texts[0][:common] == texts[1][:common]
        assert [text[common:] for text in texts] == marked
        assert marked[0][:1] != marked[1][:1]

    def test_both_at_once_are_not_counted_in_the_speed(self, page):
        page.check("#together")
        ask(page, "the film was")
        assert number(page, "#requests") == 1
        assert page.text_content("#speedup") == "–"

    def test_a_stream_that_is_stopped_leaves_no_entry(self, visit):
        requests = []  # never answered
        page = opened(visit(route=("**/generate/stream", lambda route: requests.append(route))))
        page.check("text=Generate")
        page.fill("#text", "the film was")
        page.keyboard.press("Enter")
        page.click("#stop")
        page.wait_for_function("document.querySelector('#status').textContent === 'Stopped.'")
        assert len(requests) == 1
        assert not page.is_visible("#stop")
        assert page.locator("#history li").count() == 0
        for route in requests:
            route.abort()

    def test_an_error_within_a_stream_is_told(self, visit):
        error = {"error": {"type": "timed_out", "message": "not answered within 1 s", "request_id": "id-7"}}
        body = f'data: {{"piece": " warm"}}\n\nevent: error\ndata: {json.dumps(error)}\n\n'
        answer = {"status": 200, "content_type": "text/event-stream", "body": body}
        page = opened(visit(route=("**/generate/stream", lambda route: route.fulfill(**answer))))
        page.check("text=Generate")
        page.fill("#text", "the film was")
        page.keyboard.press("Enter")
        page.wait_for_selector("#alert p")
        assert page.text_content("#alert") == "not answered within 1 sRequest id-7"
        assert page.text_content("#answer-a .stream") == "the film was warm"


class TestErrors:
    def test_the_servers_own_message_and_request_id_are_shown(self, page):
        page.fill("#text", "good " * 30_000)
        page.click("#submit")
        page.wait_for_selector("#alert p")
        message, request = page.locator("#alert p").all_text_contents()
        assert "characters" in message
        assert re.fullmatch(r"Request \S+", request)
        ask(page, "the film was good")
        assert not page.is_visible("#alert")

    def test_when_to_come_back_is_shown_and_a_hostile_message_stays_text(self, visit):
        error = {"error": {"type": "queue_full", "message": HOSTILE, "request_id": "id-1"}}
        answer = {"status": 429, "headers": {"Retry-After": "3"}, "json": error}
        page = opened(visit(route=("**/compare", lambda route: route.fulfill(**answer))))
        page.fill("#text", "good")
        page.click("#submit")
        page.wait_for_selector("#alert p")
        assert page.locator("#alert p").all_text_contents() == [HOSTILE, "Request id-1", "Try again in 3 s."]

    def test_a_server_that_is_gone_is_told(self, visit):
        page = opened(visit(route=("**/compare", lambda route: route.abort())))
        page.fill("#text", "good")
        page.click("#submit")
        page.wait_for_selector("#alert p")
        assert page.text_content("#alert") == "The server does not answer. Is it still running?"

    def test_nothing_to_compare_is_told(self, visit):
        answer = {"json": {"tiers": [], "default_pair": None}}
        page = visit(route=("**/tiers", lambda route: route.fulfill(**answer)))
        page.wait_for_selector("#alert p")
        assert page.text_content("#alert").startswith("Nothing to compare here")
        assert not page.is_visible("#form")

    def test_a_key_is_asked_for_where_one_is_needed(self, visit):
        error = {"error": {"type": "unauthorized", "message": "give the key", "request_id": "id-2"}}

        def guard(route):
            if route.request.headers.get("authorization") == "Bearer open sesame":
                route.continue_()
            else:
                route.fulfill(status=401, json=error)

        page = visit(route=("**/tiers", guard))
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        opened(page)
        assert not page.is_visible("#key-form")
        ask(page, "the film was good")


def test_the_page_is_served_under_a_strict_policy_and_fetches_nothing_from_elsewhere(page, address):
    policy = page.request.get(address).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    fetched = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(fetched) > 5
    assert all(name.startswith(address) for name in fetched)


def test_a_server_that_comes_up_later_is_found(visit):
    answers = iter((503, 503))

    def late(route):
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            error = {"type": "closing", "message": "not yet", "request_id": "id-3"}
            route.fulfill(status=status, json={"error": error})

    page = visit(route=("**/tiers", late))
    page.wait_for_selector("#alert p")
    assert page.text_content("#alert p") == "not yet"
    opened(page)
    assert not page.is_visible("#alert")
