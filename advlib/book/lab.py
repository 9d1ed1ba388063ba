"""The book's attack lab in a notebook, for any network and any images.

Needs ipywidgets, which `pip install "advlib[notebook]"` brings. `advlib.book.figures.attack_view`
draws the same view without widgets.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advlib.attacks import input_gradient
from advlib.attacks.common import project
from advlib.book.figures import attack_view
from advlib.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    check_number,
)
from advlib.runtime import evaluation_mode


def attack_lab(
    models: nn.Module | Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.1,
    steps: int = 20,
    bounds: Bounds = (0.0, 1.0),
    classes: Sequence[str] = (),
) -> Any:
    """Return a widget, an `ipywidgets.VBox`, that attacks images step by step in a notebook.

    Pick an image and eps, press Attack, and watch the image, its perturbation and the class
    probabilities. Each network is attacked by its own gradient: BIM with step size eps / 10, as
    `bim(model, x, y, eps=eps, alpha=eps / 10, steps=steps, bounds=bounds)` would do it at once.

    Args:
        models: one network, or several by name, that map images to logits (n, classes).
        x: images to choose from, (n, c, h, w) with c 1 or 3, on the models' device.
        y: their labels, int64 (n,).
        eps: where the slider stands first, above 0, in pixel units; it goes up to three times that.
        steps: of one attack.
        bounds: the pixel range; None leaves it open, and the picture shows it from 0 to 1.
        classes: the classes' names, their numbers by default.

    Raises:
        ImportError: ipywidgets is missing.
        TypeError, ValueError: an argument is of the wrong type, shape or range.
    """
    try:
        import ipywidgets
    except ImportError as error:
        needs = 'advlib.book.lab needs ipywidgets: pip install "advlib[notebook]"'
        raise ImportError(needs) from error
    named = _named(models)
    check_bounds(bounds)
    check_images(x, bounds)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x must have shape (n, 1 or 3, h, w), got {tuple(x.shape)}")
    check_labels(y, x)
    if check_number("eps", eps) == 0:
        raise ValueError("eps must be above 0")
    check_count("steps", steps)
    for name, model in named.items():
        count = _scores(model, x[:1]).shape[1]
        if y.max() >= count or (classes and len(classes) != count):
            raise ValueError(f"y and classes must be of the {count} classes of models[{name!r}]")
    return _Lab(ipywidgets, named, x.detach(), y, eps, steps, bounds, classes).box


class _Lab:
    """What the widgets show: an image, and how far the attack on it has come."""

    def __init__(
        self,
        widgets: Any,
        models: Mapping[str, nn.Module],
        x: Tensor,
        y: Tensor,
        eps: float,
        steps: int,
        bounds: Bounds,
        classes: Sequence[str],
    ) -> None:
        self.models, self.x, self.y = models, x, y
        self.steps, self.bounds, self.classes = steps, bounds, classes
        names = [classes[label] if classes else str(label) for label in y.tolist()]
        self.image = widgets.Dropdown(
            description="image",
            options=[(f"{i + 1}: {name}", i) for i, name in enumerate(names)],
        )
        self.eps = widgets.FloatSlider(
            description="eps",
            value=eps,
            max=3 * eps,
            step=eps / 10,
            readout_format=".3f",
            continuous_update=False,
        )
        self.start = widgets.Button(description="Attack", button_style="primary")
        self.back = widgets.Button(description="Reset")
        self.status = widgets.Label()
        self.picture = widgets.HTML()
        self.controls = widgets.HBox([self.image, self.eps, self.start, self.back])
        self.controls.layout.flex_flow = "row wrap"
        for button in (self.start, self.back):
            button.layout.width = "6em"
        self.box = widgets.VBox([self.controls, self.status, self.picture])
        self.reset()
        for control in (self.image, self.eps):
            control.observe(self.reset, "value")
        self.back.on_click(self.reset)
        self.start.on_click(self.attack)

    def reset(self, event: Any = None) -> None:
        """Show the image as it is."""
        self.show(0, dict.fromkeys(self.models, self.chosen()[0]))

    def attack(self, event: Any) -> None:
        """Attack the image, and show it after each step."""
        x, y = self.chosen()
        eps = self.eps.value
        attacked = dict.fromkeys(self.models, x)
        self.enable(False)
        try:
            for step in range(1, self.steps + 1):
                for name, model in self.models.items():
                    slopes = input_gradient(model, attacked[name], y)
                    moved = attacked[name] + eps / 10 * slopes.sign()
                    attacked[name] = project(moved, x, eps, self.bounds, "linf")
                self.show(step, attacked)
        except Exception as error:  # ipywidgets writes it to the log only
            self.status.value = f"The attack failed. {type(error).__name__}: {error}"
            raise
        finally:
            self.enable(True)

    def chosen(self) -> tuple[Tensor, Tensor]:
        """The image and its label, as a batch of one."""
        i = self.image.value
        return self.x[i : i + 1], self.y[i : i + 1]

    def enable(self, on: bool) -> None:
        """Let the controls be used, or not."""
        for control in self.controls.children:
            control.disabled = not on

    def show(self, step: int, attacked: Mapping[str, Tensor]) -> None:
        """Draw the state after so many steps, and say what the networks take it for."""
        x, y = self.chosen()
        logits, words = {}, []
        for name, model in self.models.items():
            logits[name] = _scores(model, attacked[name])
            answer = int(logits[name].argmax())
            verdict = "right ✓" if answer == int(y) else "wrong ✗"
            words.append(f"{name}: {self.classes[answer] if self.classes else answer}, {verdict}")
        figure = attack_view(
            x,
            y,
            attacked,
            logits,
            eps=self.eps.value,
            limits=self.bounds or (0.0, 1.0),
            classes=self.classes,
        )
        png = io.BytesIO()
        figure.savefig(png, format="png")
        label = f"Step {step} of {self.steps}, eps {self.eps.value:.3g}. {'; '.join(words)}"
        source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        self.picture.value = f'<img alt="{html.escape(label)}" src="{source}">'
        self.status.value = label


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, classes) in evaluation mode."""
    with evaluation_mode(model), torch.no_grad():
        logits: Tensor = model(x)
    return logits


def _named(models: Any) -> dict[str, nn.Module]:
    """The networks by name: one alone is called network."""
    named = {"network": models} if isinstance(models, nn.Module) else dict(models)
    if not named or not all(isinstance(model, nn.Module) for model in named.values()):
        raise TypeError("models must be a torch.nn.Module, or hold at least one by name")
    return named
