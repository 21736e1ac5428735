"""The client for apps: its functions among fakes, its types, its size and its package. In real browsers it is tested elsewhere."""

import gzip
import json
import pathlib
import re
import subprocess
import tempfile
import tomllib
import unittest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CLIENT = ROOT / "client"
NODE = HERE.parent / "provider/node_modules/.bin/node"
VITE = HERE / "node_modules/vite/bin/vite.js"
TSC = HERE / "node_modules/typescript/bin/tsc"


class TheClient(unittest.TestCase):
    def runs(self, *command, cwd=HERE):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, f"{done.stdout}{done.stderr}"[-5000:])
        return done.stdout

    def test_each_function_does_what_it_says(self):
        self.runs(NODE, "--test", "client.test.mjs")

    def test_an_app_is_held_to_the_types(self):
        self.runs(NODE, TSC, "--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom",
                  "sample.ts")

    def test_the_types_are_those_of_the_module(self):
        exported = json.loads(self.runs(NODE, "--input-type=module", "-e", """
            globalThis.location = { href: "https://app.test/" };
            const client = await import(process.argv[1]);
            console.log(JSON.stringify([Object.keys(client).sort(), Object.keys(client.gateway("/")).sort()]));
            """, CLIENT / "client.js"))
        types = (CLIENT / "client.d.ts").read_text()
        declared = re.findall(r"^export (?:declare )?(?:const|function|class) (\w+)", types, re.M)
        methods = re.findall(r"^  (\w+)(?:<.*?>)?\(", re.search(r"interface Gateway \{(.*?)^\}", types, re.S | re.M)[1], re.M)
        self.assertEqual([sorted(declared), sorted(methods)], exported)

    def test_the_types_have_every_code(self):
        codes = re.findall(r'\(\s*\d{3},\s*"(\w+)"', (ROOT / "src/error.rs").read_text())
        self.assertGreater(len(codes), 25)
        declared = re.search(r"export type Code =(.*?);", (CLIENT / "client.d.ts").read_text(), re.S)[1]
        self.assertEqual(sorted(re.findall(r'"(\w+)"', declared)), sorted(codes))

    def test_it_is_small(self):
        self.assertLessEqual(len(gzip.compress((CLIENT / "client.js").read_bytes(), 9)), 3072)

    def test_it_needs_nothing(self):
        self.assertNotRegex((CLIENT / "client.js").read_text(), r"(?m)^import |\bimport\(|require\(")
        self.assertNotIn("dependencies", json.loads((CLIENT / "package.json").read_text()))

    def test_the_package_holds_what_is_needed_and_works(self):
        with tempfile.TemporaryDirectory() as folder:
            packed = json.loads(self.runs("npm", "pack", "--json", "--pack-destination", folder, cwd=CLIENT))
            # A list, or as newer ones have it an object by name.
            [package] = packed if isinstance(packed, list) else packed.values()
            self.assertEqual(sorted(file["path"] for file in package["files"]), ["README.md", "client.d.ts", "client.js", "package.json"])
            version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
            self.assertEqual((package["name"], package["version"]), ("arcmanager-gateway-client", version))
            modules = pathlib.Path(folder) / "node_modules/arcmanager-gateway-client"
            modules.mkdir(parents=True)
            self.runs("tar", "xf", pathlib.Path(folder) / package["filename"], "--strip-components=1", "-C", modules)
            app = pathlib.Path(folder) / "app.mjs"
            app.write_text('import { gateway } from "arcmanager-gateway-client";\n'
                           'console.log(gateway("https://app.test/gw").downloadUrl("a", "/api/v4/x"));\n')
            self.assertEqual(self.runs(NODE, app, cwd=folder), "https://app.test/gw/datahubs/a/api/v4/x\n")
            # A bundle has it once, among its own script.
            (pathlib.Path(folder) / "index.html").write_text('<!doctype html><script type="module" src="app.mjs"></script>')
            self.runs(NODE, VITE, "build", folder, "--logLevel", "warn")
            [bundle] = (pathlib.Path(folder) / "dist/assets").iterdir()
            self.assertIn("https://app.test/gw", bundle.read_text())


if __name__ == "__main__":
    unittest.main()
