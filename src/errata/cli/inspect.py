"""`errata inspect MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options, screen


def inspect(
    model: options.ModelArgument,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a model keeps its facts, and which methods can edit it."""
    import errata
    from errata.cli.opening import load_base
    from errata.lm.weights import is_transposed, read_bias

    base, tokenizer = load_base(model, dtype, device_map)
    lm = errata.LM(base, tokenizer)
    places = lm.architecture
    layer = places.default_layer()
    values = places.value_module(base, layer)
    facts = {
        "model_type": places.model_type,
        "layers": places.n_layers,
        "hidden_size": places.hidden_size,
        "w_out": places.value_path(layer),
        "w_out_shape": [places.d_out, places.d_in],
        "w_out_stored_transposed": is_transposed(values),
        "bias": read_bias(values) is not None,
        "default_layer": layer,
        "head": places.head,
        "context": lm.context_length or None,
        "chat_template": lm.chat,
        "dtype": str(base.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in base.parameters()),
    }
    methods = {}
    for name in errata.method_names():
        try:
            errata.get_edit_model(base, errata.method_class(name).config_class(), tokenizer)
            methods[name] = "fits"
        except errata.ErrataError as error:
            methods[name] = str(error)
    if as_json:
        screen.print_json({**facts, "methods": methods})
        return
    shown = screen.table("", "")
    shown.show_header = False
    for name, value in {
        **facts,
        **{f"method {name}": fit for name, fit in methods.items()},
    }.items():
        text = " x ".join(map(str, value)) if isinstance(value, list) else value
        shown.add_row(name.replace("_", " "), screen.plain(text))
    screen.show(shown)
