"""`PerImageTechnique` is the base of techniques that can work through an image set of any size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, final

from timmscope.images import Images
from timmscope.models import HookedModel
from timmscope.techniques.base import Technique, require_model
from timmscope.techniques.opening import opening
from timmscope.techniques.session import check_seed

if TYPE_CHECKING:
    from timmscope.techniques.over.result import ImageSetRun


class PerImageTechnique(Technique):
    """What attributions, attacks, certifications, defences and style techniques share.

    What such a technique makes of an image does not depend on the others, so it can work through
    any number of them in chunks.
    """

    over_argument: ClassVar[str] = "images"
    """The argument of the call that gets the images."""
    over_keeps: ClassVar[str] = "images"
    """The result's field that `over` keeps of each image: `images`, `maps`, or nothing."""

    @classmethod
    def works_over_sets(cls) -> bool:
        """Return whether the technique takes images to work on."""
        return True

    @final
    def over(
        self,
        model: HookedModel | None,
        images: Images,
        output: str | os.PathLike[str],
        *,
        use_labels: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        **arguments: Any,
    ) -> ImageSetRun:
        """Work through an image set of any size, or resume where a run was stopped.

        Memory does not grow with the number of images. A run that is killed at any place loses at
        most one chunk; called again with the same arguments, it resumes, and ends with the same
        bytes. Random numbers depend on the seed and on the number of an image in the set.

        The folder gets `images.npy` or `maps.npy` (float32, one row per image), the facts of every
        image in `images.csv`, and what `Result.save` writes. A folder with images is an image set
        itself, whose images a model of the same input size takes as floats.

        Args:
            model: the model; None for a technique that takes none, for which all images get the
                size of the first.
            images: a folder, a list of files, an array, a tar, or what `over` has written, as
                `timmscope.open_images` takes them.
            output: folder of the run.
            use_labels: take the argument `labels` of the call from the labels of the images, which
                are names or indices of the model's classes.
            batch_size: images per chunk and per pass; by default as many as fit the memory budget,
                at most 32. It is part of the run, since another one may change the last bits.
            workers: processes that read images; by default one per CPU, at most 2; 0 reads in this
                process. The result does not depend on it.
            seed: seed of random numbers.
            arguments: the other arguments of the call, as in `objective="class:282"`; classes are
                one for all images, or a list with one for each.

        Raises:
            StoreMismatch: the folder holds a run of another technique or model, with other images
                or settings; the message shows the differences.
            StoreError: the folder holds other files or cannot be written, the disk is full, or
                another process writes there.
            StoreCorrupted: the files of the run were damaged.
            ImageError: there are no images, none can be read, or their disk has gone. One image
                that cannot be read is reported, and does not end the run.
            TechniqueError: the technique refuses all images of the first chunk. One image that it
                refuses is reported.
            ParameterError: an argument is unknown or out of range, or labels are no classes.
            ObjectiveError: the objective does not fit the model.
        """
        from timmscope.techniques.over.run import run_over

        self._require_over(model, arguments)
        check_seed(seed)
        with opening([self], model, seed):  # once, not for each chunk
            return run_over(
                self,
                model,
                images,
                output,
                arguments,
                use_labels=use_labels,
                batch_size=batch_size,
                workers=workers,
                seed=seed,
            )

    def _require_over(self, model: HookedModel | None, arguments: dict[str, Any]) -> None:
        """Refuse a call that could not work for any image."""
        require_model(model)  # type: ignore[arg-type]
