// Package gitops asks the libraries of Flux and Argo CD what they make of our objects.
//
// The objects in testdata are written by src/controller/gitops_tests.rs from the code that reports them, each with
// the words expected. Here the tools themselves say theirs; nothing of what they do is told again in our own code.
package gitops

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	argocd "github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/diff"
	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	helm "github.com/fluxcd/helm-controller/api/v2"
	kustomize "github.com/fluxcd/kustomize-controller/api/v1"
	source "github.com/fluxcd/source-controller/api/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const samples = "../../../../manifests/samples/gitops"

// The fewest states that make sense; fewer means that the test data was not found.
const fewestStates = 40

type state struct {
	Kstatus string                 `json:"kstatus"`
	ArgoCD  string                 `json:"argoCD"`
	Object  map[string]interface{} `json:"object"`
}

func (s state) object() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: s.Object}
}

func states(t *testing.T) map[string]state {
	t.Helper()
	files, err := filepath.Glob("testdata/states/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < fewestStates {
		t.Fatalf("only %d states in testdata/states", len(files))
	}
	all := make(map[string]state)
	for _, file := range files {
		var read state
		parse(t, file, &read)
		read.Object = remarshalled(t, read.Object).Object
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = read
	}
	return all
}

func TestFluxWaitsAsItShould(t *testing.T) {
	for name, state := range states(t) {
		t.Run(name, func(t *testing.T) {
			result, err := status.Compute(state.object())
			if err != nil {
				t.Fatal(err)
			}
			if result.Status.String() != state.Kstatus {
				t.Errorf("kstatus says %s (%s), not %s", result.Status, result.Message, state.Kstatus)
			}
			if result.Status != status.CurrentStatus && result.Message == "" {
				t.Errorf("kstatus says %s and not why", result.Status)
			}
		})
	}
}

// Hence the default of a status in our schema: a generation that never is.
func TestFluxTakesAnObjectWithoutStatusForDone(t *testing.T) {
	object := states(t)["a_network_that_nobody_has_seen_yet"].object()
	unstructured.RemoveNestedField(object.Object, "status")
	result, err := status.Compute(object)
	if err != nil {
		t.Fatal(err)
	}
	if result.Status != status.CurrentStatus {
		t.Errorf("kstatus says %s: the default is not needed any more", result.Status)
	}
}

func TestArgoCDShowsTheRightHealth(t *testing.T) {
	overrides := overridesIn(t, "argocd/argocd-cm.yaml")
	for name, state := range states(t) {
		t.Run(name, func(t *testing.T) {
			said, err := health.GetResourceHealth(state.object(), overrides)
			if err != nil {
				t.Fatal(err)
			}
			if said == nil {
				t.Fatal("Argo CD has no script for this kind")
			}
			if string(said.Status) != state.ArgoCD {
				t.Errorf("Argo CD says %s (%s), not %s", said.Status, said.Message, state.ArgoCD)
			}
			if said.Message == "" {
				t.Errorf("Argo CD says %s and not why", said.Status)
			}
		})
	}
}

// Without the script every object is healthy to Argo CD: it must be there before the network is.
func TestArgoCDKnowsNoHealthOfItsOwnForUs(t *testing.T) {
	for name, state := range states(t) {
		said, err := health.GetResourceHealth(state.object(), lua.ResourceHealthOverrides{})
		if err != nil {
			t.Fatal(err)
		}
		if said != nil && state.Kstatus != "Terminating" {
			t.Errorf("%s: Argo CD says %s", name, said.Status)
		}
	}
}

func TestBothKindsHaveTheCommittedScript(t *testing.T) {
	script := read(t, filepath.Join(samples, "argocd/health.lua"))
	overrides := overridesIn(t, "argocd/argocd-cm.yaml")
	for _, kind := range []string{"BsnNetwork", "BsnNode"} {
		if found := overrides["bsn-operator.io/"+kind].HealthLua; found != string(script) {
			t.Errorf("argocd-cm.yaml does not hold health.lua for %s", kind)
		}
	}
	if len(overrides) != 2 {
		t.Errorf("argocd-cm.yaml holds %d scripts", len(overrides))
	}
}

// What Git leaves out and the schema fills in, also inside the list of node sets, is no difference to Argo CD.
func TestArgoCDTakesNoDefaultForAChange(t *testing.T) {
	var defaults struct {
		Git  map[string]interface{} `json:"git"`
		Live map[string]interface{} `json:"live"`
	}
	parse(t, "testdata/defaults.json", &defaults)
	git, live := remarshalled(t, defaults.Git), remarshalled(t, defaults.Live)
	// Applied by a client that leaves a note of what it applied, and by the server, which needs none.
	noted := live.DeepCopy()
	noted.SetAnnotations(map[string]string{
		"kubectl.kubernetes.io/last-applied-configuration": string(mustJSON(t, git.Object)),
	})
	changed := git.DeepCopy()
	if err := unstructured.SetNestedField(changed.Object, true, "spec", "paused"); err != nil {
		t.Fatal(err)
	}
	for name, live := range map[string]*unstructured.Unstructured{"noted": noted, "not noted": live} {
		for want, git := range map[bool]*unstructured.Unstructured{false: git, true: changed} {
			result, err := diff.Diff(git, live)
			if err != nil {
				t.Fatal(err)
			}
			if result.Modified != want {
				t.Errorf("%s: Argo CD says out of sync: %v, not %v", name, result.Modified, want)
			}
		}
	}
}

func TestEveryExampleIsWhatItsToolReads(t *testing.T) {
	documents := 0
	for _, folder := range []string{"argocd", "flux"} {
		files, err := filepath.Glob(filepath.Join(samples, folder, "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if filepath.Base(file) == "argocd-cm.yaml" {
				continue
			}
			for _, document := range strings.Split(string(read(t, file)), "\n---\n") {
				var kind struct {
					Kind string `json:"kind"`
				}
				if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				into, known := map[string]interface{}{
					"Application":   &argocd.Application{},
					"GitRepository": &source.GitRepository{},
					"HelmRelease":   &helm.HelmRelease{},
					"Kustomization": &kustomize.Kustomization{},
				}[kind.Kind]
				if !known {
					t.Fatalf("%s: %q is a kind of no tool", file, kind.Kind)
				}
				if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
					t.Errorf("%s: %s: %v", file, kind.Kind, err)
				}
				documents++
			}
		}
	}
	if documents == 0 {
		t.Error("no example was found")
	}
}

// The health scripts in a ConfigMap. Argo CD reads the kind from the end of each key, and the script with its standard
// libraries closed.
func overridesIn(t *testing.T, file string) lua.ResourceHealthOverrides {
	t.Helper()
	var patch struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.UnmarshalStrict(read(t, filepath.Join(samples, file)), &patch); err != nil {
		t.Fatal(err)
	}
	overrides := make(lua.ResourceHealthOverrides)
	for key, script := range patch.Data {
		name, is := strings.CutPrefix(key, "resource.customizations.health.")
		group, kind, cut := strings.Cut(name, "_")
		if !is || !cut {
			t.Fatalf("Argo CD does not read %q", key)
		}
		overrides[group+"/"+kind] = argocd.ResourceOverride{HealthLua: script}
	}
	return overrides
}

func remarshalled(t *testing.T, object map[string]interface{}) *unstructured.Unstructured {
	t.Helper()
	// Numbers as a client reads them: whole ones as int64.
	whole := &unstructured.Unstructured{}
	if err := whole.UnmarshalJSON(mustJSON(t, object)); err != nil {
		t.Fatal(err)
	}
	return whole
}

func parse(t *testing.T, file string, into interface{}) {
	t.Helper()
	if err := json.Unmarshal(read(t, file), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func mustJSON(t *testing.T, object map[string]interface{}) []byte {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
