"""Sphinx's settings for the site: `make docs` builds it from _proc/."""

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from api_pages import exported_names, front_door  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.utils.math import latex2mathml  # noqa: E402

settings = ConfigParser()
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
project = settings["DEFAULT"]["lib_name"]
release = version = settings["DEFAULT"]["version"]
author = settings["DEFAULT"]["author"]
copyright = author

extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.intersphinx"]
root_doc = "index"
exclude_patterns = [".build"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_code_prompt_show = nb_code_prompt_hide = "imports"  # all that is folded, see lesson_pages.py
html_math_renderer = "mathml"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# Inventories of other projects, where someone has put them: docs/inventories/numpy.inv and so on.
# Nothing is downloaded.
OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "rasterio": "https://rasterio.readthedocs.io/en/stable/",
}
inventories = {name: HERE / "inventories" / f"{name}.inv" for name in OTHERS}
intersphinx_mapping = {n: (OTHERS[n], str(file)) for n, file in inventories.items() if file.is_file()}

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["parameters.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_sidebars = {"index": [], "start": [], "mcc_003": [], "benchmarks": [], "changelog": [], "citation": []}
html_theme_options = {
    "logo": {"text": project},
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "show_prev_next": True,
    "collapse_navigation": True,
    "navigation_depth": 3,
    "show_nav_level": 1,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "github-dark",
}
copybutton_exclude = ".linenos, .gp, .go"


def own_name(app, env, node, content):
    "Types in signatures and `glacier_nb.train` by their short names, each of which one module alone exports."
    name = node.get("reftarget", "").rpartition(".")[2]
    module = exported_names().get(name)
    full = front_door().get(name) if module is None else f"{module}.{name}"
    if node.get("refdomain") != "py" or full is None:
        return None
    domain = env.get_domain("py")
    if full not in domain.objects:
        return None
    node["reftarget"] = full
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)


def inline_math(self, node):
    "A formula as MathML, which browsers draw without a script."
    self.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(self, node):
    "A formula that stands by itself."
    self.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    "Names of the library from anywhere in it; formulas without MathJax, which would come from the network."
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("missing-reference", own_name)
