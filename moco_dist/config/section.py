"""A section of the config is a frozen set of keys; the types of values that all sections share stand here."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from moco_dist.config.meaning import as_meant, number, truth
from moco_dist.config.paths import refuse_password


def _file_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+=-]*", text):
        raise ValueError("must be a file name of letters, digits and _ . + = -")
    if len(text.encode()) > 255:
        raise ValueError("must have at most 255 bytes")
    return text


FileName = Annotated[str, AfterValidator(_file_name)]
Int = Annotated[int, BeforeValidator(number)]
Float = Annotated[float, BeforeValidator(number)]
Positive = Annotated[Int, Field(gt=0)]
Natural = Annotated[Int, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Switch = Annotated[Literal["auto", True, False], BeforeValidator(truth)]
CompileSwitch = Annotated[Literal["auto", "reduce-overhead", True, False], BeforeValidator(truth)]
Interval = tuple[Float, Float]
MOST_CHANNELS = 12
"""An image has so many channels at most."""


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: object, info: ValidationInfo) -> object:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str):
                refuse_password(text)
        return as_meant(value, cls.model_fields[info.field_name or ""].annotation)
