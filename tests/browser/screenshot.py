#!/usr/bin/env python3
"""Takes the pictures of the README: what the demo app shows, light, dark and on a phone, in front of the real gateway."""

import time

from webdriver import Browser
from world import ROOT, World


def main():
    world, browser = World(), Browser("chromium")
    try:
        for datahub, user in [("freiburg", "joerg"), ("tuebingen", "testuser")]:
            browser.open(world.app)
            browser.click(f'[data-login="{datahub}"]')
            browser.click(f"#sign-in-{user}")
            browser.find(f'[data-session="{datahub}"]')
        (ROOT / "docs").mkdir(exist_ok=True)
        browser.open(f"{world.app}#/?search=barley")
        browser.find('[data-found="freiburg"] .row')
        browser.find('[data-found="tuebingen"] .row')
        browser.find("#status", "projects at")
        picture(browser, "light")

        browser.open(f"{world.app}#/tuebingen/230?path=README.md")
        browser.click("#edit")
        browser.type("#file-text", "# Heat stress in Arabidopsis")
        browser.script("""
            const text = document.querySelector("#file-text");
            text.value = text.value.replace("Arabidopsis# Heat stress", "Arabidopsis");
            text.dispatchEvent(new Event("input"));
            document.querySelector(".rooms").scrollIntoView({ block: "start", behavior: "instant" });""")
        picture(browser, "dark")
        browser.click(".commit .quiet")

        browser.cdp("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        # One begins with each minute and runs for forty seconds.
        time.sleep((75 - time.time() % 60) % 60)
        browser.open(f"{world.app}#/tuebingen/230/jobs")
        browser.click("#jobs .job")
        browser.find("#trace", "sample 10")
        browser.script("document.querySelector('.viewer').scrollIntoView({ block: 'end', behavior: 'instant' })")
        picture(browser, "phone")
    finally:
        browser.close()
        world.close()


def picture(browser, name):
    scheme = "dark" if name == "dark" else "light"
    browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.script("await Promise.allSettled(document.getAnimations().map((one) => one.finished))")
    (ROOT / f"docs/demo-{name}.png").write_bytes(browser.screenshot())


if __name__ == "__main__":
    main()
