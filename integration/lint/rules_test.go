package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cowblk/internal/test"
)

const module = "cowblk/"

// pkg has the members of "go list -json" that the rules use.
type pkg struct {
	ImportPath                string
	Dir                       string
	GoFiles                   []string
	Imports                   []string
	TestGoFiles, XTestGoFiles []string
	TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	all := slices.Concat(list(t, "../.."), list(t, ".."))
	if len(all) < 10 {
		t.Fatalf("found only %d packages", len(all))
	}
	return all
}

// list returns the packages of the module in dir.
func list(t *testing.T, dir string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list",
		"-json=ImportPath,Dir,GoFiles,Imports,TestGoFiles,XTestGoFiles,TestImports,XTestImports",
		"-tags", "integration", "./...")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// under reports whether a package of this module is root or lies below it.
func under(path, root string) bool {
	rest, ok := strings.CutPrefix(path, module+root)
	return ok && (rest == "" || rest[0] == '/')
}

// importRules lists the imports within the module that the packages of a part may have, besides
// packages of the part itself. The first part that a package lies in applies. CONTRIBUTING.md lists
// the imports of each package: see TestListOfImports.
var importRules = []struct {
	pkg string
	may []string
}{
	{"cmd", []string{"backend", "cow", "vhost/load"}},
	{"backend/client", []string{"backend/control", "backend/daemon", "cow/shell", "cow/store"}},
	{"backend/daemon", []string{"backend", "cow"}},
	{"backend/backendtest", []string{"backend/qmp", "cow", "vhost/frontend", "internal/test"}},
	{"backend/control", []string{"backend/qmp/link", "cow/way"}},
	{"backend/qmp", []string{"backend/control"}},
	{"backend/nbd", []string{"backend/control", "backend/loglimit"}},
	{"backend/takeover", []string{"backend/control"}},
	{"backend/sandbox", nil},
	{"backend/loglimit", nil},
	{"backend", []string{"vhost", "cow", "eventfd"}},
	{"vhost", []string{"eventfd"}},
	{"cow", []string{"eventfd"}},
	{"eventfd", nil},
	{"internal/test", nil},
	{"integration", []string{"backend", "vhost", "cow"}},
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		i := slices.IndexFunc(importRules, func(r struct {
			pkg string
			may []string
		}) bool {
			return under(p.ImportPath, r.pkg)
		})
		if i < 0 {
			t.Errorf("no rule for %s", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) || under(imp, importRules[i].pkg) {
				continue
			}
			if !slices.ContainsFunc(importRules[i].may,
				func(r string) bool { return under(imp, r) }) {
				t.Errorf("%s imports %s: %s may import only %v", p.ImportPath, imp,
					importRules[i].pkg, importRules[i].may)
			}
		}
	}
}

// Package backend is the data plane: it does not import the control plane.
func TestDataPlaneDoesNotImportControlPlane(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if p.ImportPath == module+"backend" && (under(imp, "backend") &&
				!under(imp, "backend/loglimit") || under(imp, "cow/store")) {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

// The protocol and the engine meet in backend and nowhere else, tests included.
func TestVhostAndCowDoNotMeet(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if under(p.ImportPath, "vhost") && under(imp, "cow") || under(p.ImportPath, "cow") &&
				under(imp, "vhost") {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}

// Package eventfd alone makes eventfds; tests may make others.
func TestEventfdsAreMadeInOnePlace(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, f))
			test.Must(t, err)
			if p.ImportPath != module+"eventfd" && strings.Contains(string(text), "unix.Eventfd(") {
				t.Errorf("%s/%s: unix.Eventfd belongs in package eventfd", p.ImportPath, f)
			}
		}
	}
}

// ownFileSystems lists the tests that have a file system of their own, each with the reason why
// faultfs does not do.
var ownFileSystems = map[string]string{
	"cow/store/call_counts_test.go": "counts calls as the kernel sees them; faultfs splits some into steps",
	"cow/mapped_head_test.go":       "counts reads of files that are mapped, which those of faultfs are not",
}

// Files that fail, block or are watched in tests are those of faultfs.
func TestOneFaultFileSystem(t *testing.T) {
	own := regexp.MustCompile(`(?m)^\t\*?vfs\.(OS|FS|SharedFS|File|SharedFile)$`)
	for _, p := range packages(t) {
		for _, f := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			text, err := os.ReadFile(filepath.Join(p.Dir, f))
			test.Must(t, err)
			name := strings.TrimPrefix(p.ImportPath, module) + "/" + f
			if found := own.Match(text); found != (ownFileSystems[name] != "") {
				t.Errorf("%s: has a file system of its own: %v, in ownFileSystems: %v", name, found,
					!found)
			}
		}
	}
}

func TestUnsafeOnlyInUnsafeFiles(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			name := strings.TrimSuffix(strings.TrimSuffix(f, ".go"), "_test")
			if strings.HasSuffix(name, "_unsafe") {
				continue
			}
			out, err := exec.Command("grep", "-nE", `^(import )?\s*"unsafe"`,
				filepath.Join(p.Dir, f)).CombinedOutput()
			if err == nil {
				t.Errorf("%s/%s imports unsafe outside of *_unsafe.go: %s", p.ImportPath, f, out)
			}
		}
	}
}
