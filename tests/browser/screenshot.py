#!/usr/bin/env python3
"""Takes the pictures of the README: the demo app, light, dark and on a phone, in front of the real gateway."""

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
        browser.open(f"{world.app}#/tuebingen/230")
        browser.click('#tree [data-path="README.md"]')
        browser.find("#edit")
        (ROOT / "docs").mkdir(exist_ok=True)
        for scheme in ("light", "dark"):
            browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            (ROOT / f"docs/demo-{scheme}.png").write_bytes(browser.screenshot())
        browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser.cdp("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        (ROOT / "docs/demo-phone.png").write_bytes(browser.screenshot())
    finally:
        browser.close()
        world.close()


if __name__ == "__main__":
    main()
