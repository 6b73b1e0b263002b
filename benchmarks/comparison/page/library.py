"""The plotting library that the page carries within itself.

Vega-Lite, as one script out of the package vl-convert-python, which holds it whole: nothing is fetched, neither when
the page is written nor when it is read. It draws vector pictures whose colours may be the page's own variables, so that
they follow dark mode and print; it can interpret its expressions instead of compiling them, so that the page may forbid
every script but its own; and it weighs 0.9 MB, where Plotly weighs 4.7 MB.
"""

import functools
from pathlib import Path

OWN_SCRIPTS = ("selection.js", "charts.js", "curves.js", "maps.js", "tables.js", "start.js")
"""The page's own scripts, in the order in which they need each other."""


@functools.cache
def plotting_library() -> str:
    """The library as a script that defines `vegaEmbed`.

    Returns:
        JavaScript, the same at every call.
    """
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@functools.cache
def own_script() -> str:
    """The page's own script.

    Returns:
        JavaScript that needs `vegaEmbed`.
    """
    folder = Path(__file__).parent
    return '"use strict";\n' + "\n".join((folder / name).read_text(encoding="utf-8") for name in OWN_SCRIPTS)
