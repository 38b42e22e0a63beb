from splitinfer import embedded


def test_embedded_directory_holds_a_checkpoint():
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "MODEL_CARD.md"):
        assert (embedded.path() / name).is_file()
