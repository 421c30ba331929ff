"""Airflow plugin: the pages of Airflow serve the reports that the tasks' "Report" buttons link to.

A file for Airflow's plugins folder, wanted where the API server can read the output folder. Where
it cannot, ONESHOT_AIRFLOW_REPORT_URL names another place.
"""

import os
from pathlib import Path
from typing import Annotated

from airflow.api_fastapi.core_api.security import get_user
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi import Path as UrlPath
from fastapi.responses import FileResponse


def reports_app(output: Path) -> FastAPI:
    """Serves `/<run id>/report.html` of an output folder to those who are logged in to Airflow."""
    app = FastAPI(openapi_url=None, dependencies=[Depends(get_user)])

    @app.get("/{run_id}/report.html")
    def report(run_id: Annotated[str, UrlPath(pattern=r"^\w[\w-]*$")]) -> FileResponse:
        path = output / "runs" / run_id / "report.html"
        if not path.is_file():
            raise HTTPException(404, f"run {run_id} has no report here")
        return FileResponse(path)

    return app


class OneshotReports(AirflowPlugin):
    """Mounts the reports under /oneshot."""

    name = "oneshot_reports"
    fastapi_apps = [
        {
            "app": reports_app(
                Path(
                    os.environ.get("ONESHOT_AIRFLOW_OUTPUT")
                    or Path(__file__).resolve().parents[2] / "output"
                )
            ),
            "url_prefix": "/oneshot",
            "name": "oneshot reports",
        }
    ]
