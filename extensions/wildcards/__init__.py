"""Wildcards: words of the prompt are chosen for each picture by its seed: `{red|blue}`, `__colour__`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from backend.extension import MAX_PROMPT, Choice, Extension, GenerationRequest, ImageStore, Param, Params

from .files import Files
from .template import Choices

OWN = Path(__file__).parent / "lists"


class WildcardParams(Params):
    template: str = Param(
        "",
        "Template",
        widget="prompt",
        max_length=MAX_PROMPT,
        infotext="Wildcard prompt",
        help="What the prompt was before the choices were made; a picture keeps it.",
    )
    negative_template: str = Param(
        "", "Negative template", widget="prompt", max_length=MAX_PROMPT, infotext="Wildcard negative prompt"
    )
    again: bool = Param(
        False, "Choose again", help="Draw from the template in place of the prompt: another seed chooses other words."
    )


class Wildcards(Extension):
    Params = WildcardParams
    order = 1000  # when all others have had their say about the prompt

    def prepare(self, request: GenerationRequest, params: WildcardParams, images: ImageStore) -> GenerationRequest:
        if params.again and params.template:
            changes = {"prompt": params.template, "negative_prompt": params.negative_template}
            request = request.model_copy(update={**changes, "prompts": (), "negative_prompts": ()})
        choices = Choices(self._files())
        given = [request.prompts_of(index) for index in range(request.images)]
        seeds = [f"{seed}" for seed in request.seeds]
        prompts = [choices.made(text, seed) for (text, _), seed in zip(given, seeds, strict=True)]
        negative_prompts = [
            choices.made(text, f"{seed} negative") for (_, text), seed in zip(given, seeds, strict=True)
        ]
        kept = {
            "template": params.template if prompts == [text for text, _ in given] else request.prompt,
            "negative_template": (
                params.negative_template
                if negative_prompts == [text for _, text in given]
                else request.negative_prompt
            ),
        }
        return request.model_copy(
            update={
                "prompt": prompts[0],
                "prompts": _where_they_differ(prompts),
                "negative_prompt": negative_prompts[0],
                "negative_prompts": _where_they_differ(negative_prompts),
                "extensions": {**request.extensions, self.id: WildcardParams(**kept)},
            }
        )

    def choices(self) -> Mapping[str, Sequence[Choice]]:
        return {"wildcards": [(name, name) for name in sorted(self._files().names)]}

    def _files(self) -> Files:
        return Files([self.models / "wildcards", OWN])


def _where_they_differ(prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(prompts) if len(set(prompts)) > 1 else ()
