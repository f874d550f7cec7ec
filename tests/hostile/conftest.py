"""One run on a hostile pool behind a password, and a folder that must stay as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hostile_helpers import ENVIRONMENT, LOGIN, SIGNATURE, Attacked, Vault, write_inputs
from run_helpers import TINY_FLAGS, Run, curate, shared_run


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    place = tmp_path_factory.mktemp("hostile")
    inputs, out = write_inputs(place / "inputs"), place / "out"
    fsspec.register_implementation("vault", Vault, clobber=True)
    Vault.folder = inputs
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        pool = f"vault://{LOGIN}host/pool.parquet"
        target = f"vault://host/target.parquet?sig={SIGNATURE}"
        given = ["--pool", pool, "--target", target, "--out", str(out)]
        method = ["--method", "dsir", "--keep", "0.5"]
        arguments = ["run", *given, *method, *TINY_FLAGS]
        result = curate(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        yield Attacked(inputs, out, arguments, result.output)


@pytest.fixture(scope="session")
def blade(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that no verb was told of."""
    folder = tmp_path / "victim"
    (folder / "deep").mkdir(parents=True)
    for name in ("part-00000.parquet", "secret.txt", "deep/one.pt"):
        (folder / name).write_text("PLANTED")
    return folder
