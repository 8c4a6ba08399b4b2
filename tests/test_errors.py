"""What people are told of errors that nobody foresaw."""

import pytest

from backend.errors import gist

SECRET = "Jane Doe"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", f"/home/{SECRET}/a.png"), "No such file or directory"),
        (OSError(f"no file named a.bin in directory /home/{SECRET}/models."), "no file named a.bin in directory ..."),
        (ValueError(f"can't load '/home/{SECRET}/a.json': no JSON"), "can't load '...': no JSON"),
        (ValueError(f"C:\\Users\\{SECRET}\\a.json is bad"), "..."),
        (ValueError(f"at \\\\server\\{SECRET}\\a.json"), "at ..."),
        (ValueError(f"see file:///home/{SECRET}/a.json"), "see ..."),
        (ValueError(f"'/home/{SECRET} is cut short"), "'..."),
        (RuntimeError("1/2 of a/b n/a </s> https://x.y/z\nand more"), "1/2 of a/b n/a </s> https://x.y/z"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_an_error_is_told_without_the_places_on_this_machine(error: Exception, said: str) -> None:
    assert gist(error) == said
