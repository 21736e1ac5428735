"""config/kubernetes/: every field is one of the Kubernetes API, and what the files say fits the gateway and one another.

`kubectl kustomize` puts base and overlay together, where there is one (Debian's is too old); no cluster is asked.
"""

import base64
import os
import re
import shutil
import subprocess
import tomllib
import unittest

import kubernetes_validate
import yaml

from machine import CLIENT_SECRET, GATEWAY, ROOT, Machine, new_key
from test_container import documented, instructions, operate

FOLDER = ROOT / "config/kubernetes"
VERSION = "1.37"


def installed(overlay="example"):
    """What an overlay comes to, by kind."""
    text = subprocess.check_output(["kubectl", "kustomize", FOLDER / "overlays" / overlay], text=True)
    return {resource["kind"]: resource for resource in yaml.safe_load_all(text)}


def base(name):
    return yaml.safe_load((FOLDER / "base" / f"{name}.yaml").read_text())


def pod():
    return base("deployment")["spec"]["template"]["spec"]


class TheFiles(unittest.TestCase):
    def validate(self, resource):
        kubernetes_validate.validate(resource, VERSION, strict=True)

    def test_every_field_is_one_of_kubernetes(self):
        for path in [*(FOLDER / "base").glob("*.yaml"), FOLDER / "overlays/example/namespace.yaml"]:
            resource = yaml.safe_load(path.read_text())
            if resource["kind"] != "Kustomization":
                with self.subTest(path.name):
                    self.validate(resource)

    def test_a_wrong_word_in_them_would_be_noticed(self):
        resource = base("deployment")
        resource["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"] = {"second": 5}
        with self.assertRaises(kubernetes_validate.ValidationError):
            self.validate(resource)

    def test_base_names_each_of_its_files(self):
        named = set(yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())["resources"])
        self.assertEqual(named, {path.name for path in (FOLDER / "base").iterdir()} - {"kustomization.yaml"})

    def test_the_probes_ask_where_the_gateway_answers(self):
        container = pod()["containers"][0]
        env = {setting["name"]: setting["value"] for setting in container["env"]}
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        self.assertEqual(env["GATEWAY__ADMIN__LISTEN"], f"0.0.0.0:{ports['admin']}")
        self.assertIn(f"GATEWAY__SERVER__LISTEN=0.0.0.0:{ports['http']}", dict(instructions("gateway"))["ENV"].split())
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ["startup", "liveness", "readiness"]}
        self.assertEqual(paths, {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"})

    def test_a_pod_is_given_the_time_it_takes_to_end(self):
        defaults = tomllib.loads((ROOT / "config/default.toml").read_text())
        shutdown = int(defaults["server"]["shutdown_timeout"].removesuffix("s"))
        sleep = pod()["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater(pod()["terminationGracePeriodSeconds"], sleep + 2 * shutdown)

    def test_a_pod_may_do_nothing_else(self):
        container = pod()["containers"][0]
        self.assertEqual(container["securityContext"], {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}})
        self.assertTrue(pod()["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod()["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertEqual(f"{pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}", dict(instructions("gateway"))["USER"])
        self.assertFalse(pod()["automountServiceAccountToken"])

    def test_all_mean_the_same_pods(self):
        labels = base("deployment")["spec"]["template"]["metadata"]["labels"]
        for name, selector in [("service", lambda spec: spec["selector"]), ("disruption-budget", lambda spec: spec["selector"]["matchLabels"]),
                               ("network-policy", lambda spec: spec["podSelector"]["matchLabels"]),
                               ("deployment", lambda spec: spec["selector"]["matchLabels"])]:
            self.assertEqual(selector(base(name)["spec"]), labels, name)
        self.assertEqual(base("autoscaler")["spec"]["scaleTargetRef"]["name"], base("deployment")["metadata"]["name"])
        self.assertNotIn("replicas", base("deployment")["spec"])

    def test_no_secret_is_in_them(self):
        for path in FOLDER.rglob("*"):
            if path.is_file():
                self.assertNotRegex(path.read_text(), r"(?m)^\s*(client_secret|keys)\s*=|kind: Secret")


class TheOverlay(unittest.TestCase):
    def setUp(self):
        if not shutil.which("kubectl"):
            self.skipTest("NOT RUN: kubectl is not here, which puts base and overlay together")
        self.installed = installed()

    def test_it_comes_to_seven_valid_resources(self):
        for resource in self.installed.values():
            kubernetes_validate.validate(resource, VERSION, strict=True)
        self.assertEqual(set(self.installed), {
            "Namespace", "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"})
        self.assertEqual({resource["metadata"].get("namespace", "arcmanager") for resource in self.installed.values()}, {"arcmanager"})

    def test_its_configuration_is_the_one_that_pods_mount(self):
        spec = self.installed["Deployment"]["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        self.assertEqual(volumes["configuration"]["configMap"]["name"], self.installed["ConfigMap"]["metadata"]["name"])
        self.assertEqual(spec["containers"][0]["image"], "registry.example.org/arcmanager-gateway:0.1.0")

    def test_the_gateway_takes_it_with_the_secret_of_the_documentation(self):
        machine = Machine()
        self.addCleanup(machine.close)
        mounts = {mount["name"]: mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]}
        text = self.installed["ConfigMap"]["data"]["gateway.toml"]
        named = set(re.findall(rf"{mounts['secrets']}/([\w.]+)", text))
        self.assertEqual(named, {"keys", "tuebingen.secret"})
        machine.write("keys", new_key())
        machine.write("tuebingen.secret", CLIENT_SECRET + "\n")
        config = machine.write("gateway.toml", text.replace(mounts["secrets"], str(machine.path)).replace(
            'url = "https://tuebingen.example.org"', 'url = "https://tuebingen.example.org"\nconnect = "127.0.0.1:1"'))
        done = subprocess.run([GATEWAY, "check", "--config", config], capture_output=True, text=True, timeout=60)
        self.assertIn("configuration: good", done.stdout, done.stderr)


class TheDocumentation(unittest.TestCase):
    """The commands of "Kubernetes", with a `kubectl` that makes what the real one makes and sends nothing to a cluster."""

    def setUp(self):
        if not shutil.which("kubectl"):
            self.skipTest("NOT RUN: kubectl is not here")
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        shutil.copytree(FOLDER, self.machine.path / "config/kubernetes")
        (self.machine.path / "stubs").mkdir()
        (self.machine.path / "stubs/arcmanager-gateway").symlink_to(GATEWAY)
        self.machine.write("stubs/kubectl", f"""#!/bin/sh
            set -eu
            [ "$1 $2" != "create secret" ] || exec {shutil.which("kubectl")} "$@"
            case "$1 $2" in
                "apply -f") cat "$3" ;;
                "apply -k") {shutil.which("kubectl")} kustomize "$3" ;;
                *) echo "kind: asked"; echo "command: $*" ;;
            esac >> {self.machine.path}/applied
            echo --- >> {self.machine.path}/applied
        """, 0o755)

    def follow(self, text):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=self.machine.path, capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{self.machine.path}/stubs:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_its_commands_make_all_that_a_cluster_needs(self):
        prepare, apply = documented("Kubernetes")
        self.follow(prepare)
        self.machine.write("secrets/tuebingen.secret", CLIENT_SECRET)
        self.follow(apply)
        applied = [resource for resource in yaml.safe_load_all((self.machine.path / "applied").read_text()) if resource]
        *resources, status = applied
        self.assertEqual([resource["kind"] for resource in resources][:3], ["Namespace", "Secret", "Namespace"])
        for resource in resources:
            kubernetes_validate.validate(resource, VERSION, strict=True)
        [secret] = [resource for resource in resources if resource["kind"] == "Secret"]
        self.assertEqual((secret["metadata"]["name"], secret["metadata"]["namespace"]), (pod_secret(), "arcmanager"))
        self.assertEqual(set(secret["data"]), {"keys", "tuebingen.secret"})
        key = new_key()
        self.assertEqual(len(base64.b64decode(secret["data"]["keys"])), len(key))
        self.assertEqual(status["command"], f"rollout status deployment/{base('deployment')['metadata']['name']} --namespace arcmanager")

    def test_its_figures_are_those_of_speed(self):
        rows = dict(re.findall(r"^\| (.+?) +\| +([\d.]+ [µm]s \| +[\d.]+ \| +[\d.]+) \|$", (ROOT / "docs/speed.md").read_text(), re.M))

        def own(row):
            nginx, ratio = float(rows[row].split()[0]), float(rows[row].split()[-1])
            return nginx * ratio

        said = re.search(r"a small call takes (\d+) µs \(64 connections\) to (\d+) µs .*?(\d+) µs a call\.", operate("Kubernetes"), re.DOTALL)
        measured = [own("CPU a call, no `Link` fields, 64 connections"), own("CPU a call, `Link` fields, 512 connections"),
                    own("CPU a call, TLS 1.3 to the DataHUB, no `Link` fields, 64 connections")]
        for figure, measure in zip(map(int, said.groups()), measured):
            self.assertLess(abs(figure - measure), 0.3 * measure, "docs/operate.md, Kubernetes: what a core serves")


def pod_secret():
    return next(volume["secret"]["secretName"] for volume in pod()["volumes"] if "secret" in volume)


if __name__ == "__main__":
    unittest.main()
