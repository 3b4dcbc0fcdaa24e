"""The dataset's saved views over an index: which there are, and which of the index's rows each chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semiocity.data.columns import Dataset
from semiocity.data.manifest import BASE
from semiocity.data.saved import open_view
from semiocity.data.views import check_fresh, read_view
from semiocity.errors import UserError


class Views:
    """Looks at the views' files whenever it is asked: one may be built while the gallery is open."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def listed(self) -> list[dict[str, Any]]:
        """name, rows of the whole view, the columns that it pins in another revision than is shown, and why it cannot
        be shown, if so."""
        found = []
        for path in sorted(Path(self._dataset.path).glob("views/*/view.json")):
            name = path.parent.name
            try:
                facts = self._facts(name)
                now = {column: self._dataset.columns.get(column) for column in facts["columns"]}
                other = [c for c, kept in now.items() if kept is None or kept.revision != facts["columns"][c]]
                found.append({"name": name, "rows": facts["rows"], "other": other, "error": None})
            except UserError as error:
                found.append({"name": name, "rows": 0, "other": [], "error": str(error)})
        return found

    def revision(self, name: str) -> str:
        """The build in use. Raises UserError when there is no such view, or it does not fit the dataset as shown."""
        return str(self._facts(name)["revision"])

    def mask(self, name: str, revision: str, shards: np.ndarray) -> np.ndarray:
        """bool [rows]: the index's rows that a build of the view chose. `shards`: the shard of each row, ascending."""
        view = open_view(self._dataset.path, f"{name}@{revision}")
        mask = np.zeros(len(shards), bool)
        for shard in np.unique(shards).tolist():
            if shard < view.facts["shards"]:  # rows that came later are none of the view's
                mask[np.searchsorted(shards, shard) + view.rows_of(shard)] = True
        return mask

    def _facts(self, name: str) -> dict[str, Any]:
        if "@" in name or "/" in name or name.startswith("."):
            raise UserError(f"view {name[:100]!r}: no view has such a name")
        facts = read_view(self._dataset.path, name)
        shown = self._dataset.column(BASE).revision
        if facts["base"] != shown:
            raise UserError(f"view {name} chose rows of base {facts['base']}, shown is {shown}; build the view again")
        check_fresh(self._dataset.path, facts)
        return facts
