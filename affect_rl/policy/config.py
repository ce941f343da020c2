"""``config.json`` of a policy."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig


class AffectConfig(PretrainedConfig):
    """``config.json`` of a policy: the language model's own config and the shape of the fusion modules.

    Attributes:
        text_config: config of the language model.
        fusion: fields of `FusionShape`.
        percept_token_id: the placeholder token that soft tokens replace.
        backbone: the published system that this was imported from, see `affect_rl.backbones.importing`; empty: none.
    """

    model_type = "affect"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    text_config: Any

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        percept_token_id: int = 0,
        backbone: str = "",
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.fusion = fusion or {}
        self.percept_token_id = percept_token_id
        self.backbone = backbone
        kwargs.setdefault("architectures", ["AffectForCausalLM"])
        super().__init__(**kwargs)

    @property
    def slides(self) -> bool:
        """Whether a layer of the language model sees only a window of the tokens before."""
        layers = getattr(self.text_config, "layer_types", None)
        if layers:
            return any(layer != "full_attention" for layer in layers)
        return bool(getattr(self.text_config, "sliding_window", None))

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PretrainedConfig:
        return self.text_config or self


AutoConfig.register("affect", AffectConfig)
