"""What an instance is told when it starts: options, ATELIER_* variables, data/settings.toml, in that order."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from backend.catalog import Kind, Roots
from backend.hardware import Hardware

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings, Hardware):
    model_config = SettingsConfigDict(env_prefix="ATELIER_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(7860, ge=0, le=65535)
    data_dir: Path = ROOT / "data"
    models_dir: Path = ROOT / "models"
    model_roots: tuple[Path, ...] = ()
    """Further folders of models."""
    model_folders: dict[Kind, tuple[Path, ...]] = Field(default_factory=dict)
    """Further folders of one kind each: {"lora": ["/mnt/loras"]}."""
    a1111_dir: Path | None = None
    """An installation of A1111's web UI whose models are used where they lie."""
    comfyui_dir: Path | None = None
    """An installation of ComfyUI, likewise."""
    hash_models: bool = True
    """Work out the hashes of all models in the background, so that they can be named by them."""
    outputs_dir: Path = ROOT / "outputs"
    extensions_dir: Path = ROOT / "extensions"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    auth: SecretStr | None = None
    """`name:password`; guards every route."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which browsers may reach this server."""
    default_model: str = ""
    safe_mode: bool = False
    """Load only the built-in extensions."""
    extension_index: str = ""
    """Path or https address of a catalogue of extensions; empty: none."""
    allow_extension_install: bool = False
    """Let administrators install extensions from the page of a server that other machines can reach."""
    allow_downloads: bool = False
    """Let the page fetch models when somebody asks for them: from huggingface.co, Civitai and other addresses."""
    huggingface_token: SecretStr | None = None
    """Sent to huggingface.co alone, for models whose licence has to be accepted there."""
    civitai_token: SecretStr | None = None
    keep_unused_days: int = Field(30, ge=0)
    """Days after which uploads and previews that no job and no picture names are deleted; 0: they are kept."""
    database_url: str = ""
    """Empty: SQLite in the data folder."""

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'atelier.db'}"

    @property
    def roots(self) -> Roots:
        """With whole paths: all processes know a file by the same one."""
        further = tuple(root.expanduser().absolute() for root in self.model_roots)
        folders = tuple(
            (kind, path.expanduser().absolute()) for kind, paths in self.model_folders.items() for path in paths
        )
        others = (self.a1111_dir, self.comfyui_dir)
        a1111, comfyui = (path and path.expanduser().absolute() for path in others)
        index = self.data_dir.expanduser().absolute() / "models.db"
        return Roots(self.models_dir.absolute(), further, a1111, comfyui, folders, index)

    @property
    def hardware(self) -> Hardware:
        return Hardware(**{name: getattr(self, name) for name in Hardware.model_fields})

    @property
    def inputs_dir(self) -> Path:
        return self.data_dir / "inputs"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        data_dir = Path(init_settings().get("data_dir") or env_settings().get("data_dir") or ROOT / "data")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, data_dir / "settings.toml")
