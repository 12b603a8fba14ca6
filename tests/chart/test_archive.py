# SPDX-License-Identifier: Apache-2.0
"""The chart's archive of a release is the chart: helm renders the same from both."""

import sys
import tarfile

from chart.conftest import CHART, KUBERNETES, ROOT

EPOCH = 1767225600


def test_helm_renders_the_same_from_the_archive(helm, tmp_path, monkeypatch):
    """Nothing is missing, nothing else is in it."""
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    monkeypatch.delitem(sys.modules, "archives", raising=False)
    import archives

    archive = tmp_path / "ciliumd.tgz"
    archive.write_bytes(archives.chart(EPOCH))
    words = ("--namespace", "kube-system", "--kube-version", KUBERNETES, "--set", "prometheus.enabled=true")
    packed, plain = (helm("template", "cilium", str(place), *words) for place in (archive, CHART))

    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == plain.stdout
    with tarfile.open(archive) as tar:
        assert {name.partition("/")[0] for name in tar.getnames()} == {"ciliumd"}
    assert helm("show", "readme", str(archive)).stdout == helm("show", "readme", str(CHART)).stdout
