"""A conversation becomes the text that transformers' own `apply_chat_template` makes of it."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from pressoir.serving.errors import RequestError
from pressoir.serving.http.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": 'be <b>nice</b> & "kind"\u2028é'},
    {"role": "user", "content": "how was it?\n"},
    {"role": "assistant", "content": "  fine "},
    {"role": "user", "content": "and the book?"},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "beginning and end": "{{ bos_token }}{% for m in messages[1:] %}{% if m.role == 'user' %}"
    "[INST] {{ m.content.strip() }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}"
    "{% endfor %}",
    "tojson": "{{ messages | tojson }}|{{ messages[:1] | tojson(indent=2) }}"
    "|{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "what is defined": "{{ unk_token is defined }} {{ pad_token }} {{ tools is none }} "
    "{{ documents is none }} "
    "{{ eos_token }}",
    "namespace and macro": "{%- macro say(m) -%}{{ m.role }}={{ m.content }};{%- endmacro -%}"
    "{%- set ns = namespace(n=0) %}\n  {% for m in messages %}\n  {%- set ns.n = ns.n + 1 %}"
    "{{- say(m) }}\n{%- endfor %}\n{{ ns.n }}",
    "by name": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "{{ messages }}"}],
}


def _copied(source, folder, template, own_file):
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if own_file:
        (folder / "chat_template.jinja").write_text(template)
    else:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


@pytest.mark.parametrize("own_file", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_transformers_own(tiny_llama, tmp_path, name, own_file):
    template = TEMPLATES[name]
    if own_file and isinstance(template, list):
        template = template[1]["template"]
    folder = _copied(tiny_llama, tmp_path / "model", template, own_file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(folder).render(MESSAGES) == expected.removeprefix("<s>")
    assert len(expected) > 10


def test_a_template_reaches_nothing_beyond_the_messages(tiny_llama, tmp_path):
    template = "{{ messages.__class__.__mro__ }}"
    folder = _copied(tiny_llama, tmp_path / "model", template, own_file=True)
    with pytest.raises(RequestError, match="unsafe"):
        ChatTemplate(folder).render(MESSAGES)
