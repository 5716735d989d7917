"""What people look at. The only room with widgets, papermill and nbconvert; it trains and measures nothing itself.

In reading order: `plots` (figures), `notebook` (what a chapter's cells call), `explorer` (type a query, see why), `map` (products
in the plane), `ablations` (choose what is compared, see the verdict), `visitors` (one process for all who look at the explorer's
page), `reports` (headless runs and their offline pages).
"""

from importlib.util import find_spec

from makelib.runtime import UserError

if missing := [name for name in ("ipywidgets", "matplotlib", "nbconvert", "papermill") if find_spec(name) is None]:
    raise UserError(f"{', '.join(missing)} not installed; the workbook needs it: pip install 'makelib[workbook]'.")
