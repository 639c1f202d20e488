"""The Backups page in a real Airflow with logins: who may see it, and how it looks and works in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import presence_of_element_located, url_contains
from selenium.webdriver.support.ui import WebDriverWait

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.embedded.ports import LOOPBACK
from spanvault.embedded.process import ServerProcess
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.model.cut import Cut, Lsn
from spanvault.storage.base import Storage
from spanvault.storage.registry import open_storage
from tests.kit.airflow import AIRFLOW, AirflowMetadata
from tests.kit.collections import at, write_collection, write_layer

pytestmark = pytest.mark.slow

RUN = ("full_backup", "manual__2026-11-22T15:30:00+00:00")
PASSWORDS = {"ada": "admin-s", "vera": "viewer-s", "noel": "nobody-s"}
ROLES = {"ada": "admin", "vera": "viewer", "noel": ""}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Site:
    """A running API server over one collection `hourly` with one chain of two layers."""

    address: str
    chain: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Every kind of page."""
        collection = "/backups/collections/hourly"
        return (
            "/backups/",
            collection,
            f"{collection}/{self.chain}",
            f"{collection}/table?table=shop.public.orders",
            "/backups/static/backups.css",
        )

    def token(self, user: str) -> str:
        """A token of a user who logs in."""
        answer = httpx.post(f"{self.address}/auth/token", json={"username": user, "password": PASSWORDS[user]})
        return str(answer.raise_for_status().json()["access_token"])

    def statuses(self, token: str | None) -> set[int]:
        """What all pages answer to the bearer of the token, or to nobody."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {httpx.get(f"{self.address}{path}", headers=headers, timeout=60).status_code for path in self.paths}


@pytest.fixture(scope="module")
def site(airflow_metadata: AirflowMetadata, seaweed: SeaweedServer, servers_folder: Path) -> Iterator[Site]:
    """Airflow's API server with a login for each role, over a bucket whose Connection is in Airflow's database."""
    home = servers_folder / "backups-page"
    home.mkdir()
    seaweed.create_bucket("backups-page")
    uri = seaweed.uri("backups-page", "backups/hourly")
    chain = write_backups(open_storage(uri, settings=Settings(), connections=EnvironmentConnections({})))
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    variables = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in ROLES.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "SPANVAULT_COLLECTION_BASE": "s3://backups-page/backups?conn_id=backup_s3",
    }
    airflow = airflow_metadata.site(home, variables=variables)
    environment = airflow.environment()
    log = home / "output.log"
    process = ServerProcess.launch(
        [AIRFLOW, "api-server"], directory=home, log=log, environment=environment, guard_signal=signal.SIGKILL
    )
    address = f"http://{LOOPBACK}:{airflow.port}"
    try:
        wait_until_it_answers(f"{address}/api/v2/monitor/health", process, log)
        site = Site(address, chain)
        add_connection(site, seaweed)
        yield site
    finally:
        process.kill()


def add_connection(site: Site, seaweed: SeaweedServer) -> None:
    """What an administrator does under Admin, Connections."""
    connection = {
        "connection_id": "backup_s3",
        "conn_type": "aws",
        "login": seaweed.access_key,
        "password": seaweed.secret_key,
        "extra": json.dumps({"endpoint_url": seaweed.endpoint, "region_name": "us-east-1"}),
    }
    headers = {"Authorization": f"Bearer {site.token('ada')}"}
    httpx.post(f"{site.address}/api/v2/connections", json=connection, headers=headers).raise_for_status()


def write_backups(storage: Storage) -> str:
    """A full by the command line and a layer by a run of Airflow; the chain's path."""
    full = write_collection(storage)
    end = Cut(lsn=Lsn(0x300), time=at(3600))
    commits = {"shop": [(0x2FF, end.time)]}
    return write_layer(storage, full, end=end, commits=commits, history=True, run_key="/".join(RUN)).subdir


def wait_until_it_answers(address: str, process: ServerProcess, log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            pass
        assert process.is_running() and time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(0.2)


def test_nobody_sees_anything_before_login(site: Site) -> None:
    assert site.statuses(None) == {401}
    assert site.statuses("not.a.token") == {403}
    page = httpx.get(f"{site.address}/backups/").text
    assert "Log in to Airflow" in page
    assert "hourly" not in page


@pytest.mark.parametrize(("user", "status"), [("ada", 200), ("vera", 200), ("noel", 403)])
def test_role_decides_who_sees_it(site: Site, user: str, status: int) -> None:
    assert site.statuses(site.token(user)) == {status}


def test_dag_named_in_the_address_does_not_help(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token('noel')}"}
    assert httpx.get(f"{site.address}/backups/?dag_id={RUN[0]}", headers=headers).status_code == 403


def test_navigation_names_the_page(site: Site) -> None:
    headers = {"Authorization": f"Bearer {site.token('vera')}"}
    plugins = httpx.get(f"{site.address}/api/v2/plugins", headers=headers).raise_for_status().json()["plugins"]
    [views] = [plugin["external_views"] for plugin in plugins if plugin["name"] == "spanvault"]
    assert [(view["name"], view["href"], view["destination"]) for view in views] == [("Backups", "backups/", "nav")]
    assert httpx.get(f"{site.address}/{views[0]['icon']}", headers=headers).headers["content-type"] == "image/svg+xml"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that talks to this machine only."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1440,900",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


def seen(browser: webdriver.Chrome, how: str, what: str) -> WebElement:
    """The first such element, as soon as there is one."""
    found: WebElement = WebDriverWait(browser, 60).until(presence_of_element_located((how, what)))
    return found


@pytest.mark.apt
def test_a_viewer_opens_it_from_the_navigation_and_follows_a_run(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(site.address)
    seen(browser, By.NAME, "username").send_keys("vera")
    seen(browser, By.NAME, "password").send_keys(PASSWORDS["vera"], Keys.ENTER)
    seen(browser, By.CSS_SELECTOR, 'a[href*="plugin/backups"]').click()
    browser.switch_to.frame(seen(browser, By.TAG_NAME, "iframe"))

    assert "2026-11-22 15:30:00.120000" in seen(browser, By.TAG_NAME, "tbody").text
    seen(browser, By.LINK_TEXT, "hourly").click()
    seen(browser, By.LINK_TEXT, site.chain).click()
    layers = seen(browser, By.CSS_SELECTOR, "#layers ~ .scroll tbody").text
    assert "2026-11-22 14:30:30.120000" in layers
    assert "any time" in layers
    log: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    errors = [entry["message"] for entry in log if entry["level"] == "SEVERE" and "/backups/" in entry["message"]]
    assert errors == [], "the page breaks its own policy"

    seen(browser, By.LINK_TEXT, RUN[0]).click()
    browser.switch_to.default_content()
    WebDriverWait(browser, 60).until(url_contains(f"/dags/{RUN[0]}/runs/"))


@pytest.mark.apt
def test_it_follows_the_theme_of_airflow(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(f"{site.address}/plugin/backups")
    browser.switch_to.frame(seen(browser, By.TAG_NAME, "iframe"))
    colours = []
    for theme in ("light", "dark"):
        browser.execute_script(f"parent.document.documentElement.className = '{theme}'")
        seen(browser, By.CSS_SELECTOR, f":root[data-theme={theme}]")
        colours.append(seen(browser, By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert colours == ["rgba(255, 255, 255, 1)", "rgba(17, 20, 24, 1)"]
