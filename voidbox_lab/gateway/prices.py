"""What a call cost in US dollars, at list price, from the local table of genai-prices. Never the network."""

from __future__ import annotations

from genai_prices import Usage, calc_price

from voidbox_lab.spec import Model, Tokens


def cost_usd(model: Model, tokens: Tokens | None) -> float | None:
    """Dollars for `tokens` of `model`; None means unpriced: an unknown model, or a call that was not metered.

    A scripted model costs 0.0. Models behind a base URL are priced only if that URL is a provider's whom
    the table knows; a local model is unpriced rather than free.
    """
    if model.provider == "scripted":
        return 0.0
    if tokens is None:
        return None
    # genai-prices' input includes cached tokens, ours (and Anthropic's) does not.
    usage = Usage(
        input_tokens=tokens.input + tokens.cache_read + tokens.cache_write,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output,
    )
    try:
        if model.base_url is None:
            price = calc_price(usage, model_ref=model.name, provider_id=model.provider)
        else:
            price = calc_price(usage, model_ref=model.name, provider_api_url=str(model.base_url))
    except (LookupError, ValueError):
        return None
    return float(price.total_price)
