"""The looks: neutral greys without a hue, so that pictures are judged on grey, and one accent, iris.

Gradio's components take these as CSS variables; ui/static/ui.css uses the same variables and no colours of its own.
"""

from gradio.themes import Base
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import radius_md, spacing_sm, text_sm

IRIS = Color(
    name="iris",
    c50="#f3f2ff",
    c100="#e7e5ff",
    c200="#d1ccff",
    c300="#b4abff",
    c400="#968aff",
    c500="#7868f5",
    c600="#5d4de0",
    c700="#4d3ec2",
    c800="#40359c",
    c900="#352e7b",
    c950="#1f1b4b",
)
GREY = Color(
    name="grey",
    c50="#fafafa",
    c100="#f2f2f2",
    c200="#e3e3e3",
    c300="#cfcfcf",
    c400="#a0a0a0",
    c500="#767676",
    c600="#5c5c5c",
    c700="#3d3d3d",
    c800="#262626",
    c900="#181818",
    c950="#101010",
)
HOVER = "color-mix(in srgb, var(--primary-600) 90%, #fff)"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> Base:
    """The theme of the page; every font is the system's, nothing is fetched."""
    return Base(
        primary_hue=IRIS,
        secondary_hue=IRIS,
        neutral_hue=GREY,
        text_size=text_sm,
        spacing_size=spacing_sm,
        radius_size=radius_md,
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="#ededed",
        body_background_fill_dark="#0e0e0e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171717",
        background_fill_secondary="#f6f6f6",
        background_fill_secondary_dark="#202020",
        border_color_primary="#dedede",
        border_color_primary_dark="#2c2c2c",
        body_text_color="#1a1a1a",
        body_text_color_dark="#ececec",
        body_text_color_subdued="#656565",
        body_text_color_subdued_dark="#a3a3a3",
        block_background_fill="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        input_background_fill="#ffffff",
        input_background_fill_dark="#212121",
        input_border_color="#d6d6d6",
        input_border_color_dark="#333333",
        input_shadow="none",
        input_shadow_focus="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover=HOVER,
        button_primary_background_fill_hover_dark=HOVER,
        button_primary_text_color="#ffffff",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )
