package lint

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// layout returns the first two code blocks of the section "Layout" of CONTRIBUTING.md: the drawing
// of the packages, and the list of their imports.
func layout(t *testing.T) (drawing, imports []string) {
	t.Helper()
	text, err := os.ReadFile("../../CONTRIBUTING.md")
	test.Must(t, err)
	_, section, _ := strings.Cut(string(text), "\n## Layout\n")
	blocks := strings.Split(section, "```\n")
	if len(blocks) < 5 {
		t.Fatal("CONTRIBUTING.md has no drawing and list of packages")
	}
	return strings.Split(blocks[1], "\n"), strings.Split(blocks[3], "\n")
}

// ownImports returns what each package of the main module imports of it, in order, without the name
// of the module.
func ownImports(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, p := range list(t, "../..") {
		imports := []string{}
		for _, imp := range p.Imports {
			if name, own := strings.CutPrefix(imp, module); own {
				imports = append(imports, name)
			}
		}
		slices.Sort(imports)
		found[strings.TrimPrefix(p.ImportPath, module)] = imports
	}
	return found
}

// CONTRIBUTING.md lists what each package imports, no more and no less: a new arrow is a decision
// that its reader sees.
func TestListOfImports(t *testing.T) {
	_, lines := layout(t)
	documented, last := map[string][]string{}, ""
	for _, line := range lines {
		names := strings.Fields(line)
		if len(names) == 0 {
			continue
		}
		if line[0] != ' ' {
			last, names = names[0], names[1:]
			if documented[last] != nil {
				t.Errorf("CONTRIBUTING.md lists %s twice", last)
			}
			documented[last] = []string{}
		}
		if !slices.Equal(names, []string{"-"}) {
			documented[last] = append(documented[last], names...)
		}
	}
	found := ownImports(t)
	for name, imports := range found {
		if of, ok := documented[name]; !ok || !slices.Equal(of, imports) {
			t.Errorf("CONTRIBUTING.md: expected the line: %s  %s", name, strings.Join(imports, " "))
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("CONTRIBUTING.md lists imports of %s, which is no package", name)
	}
}

// The drawing has each package of the binary once, and imports go down.
func TestDrawingOfPackages(t *testing.T) {
	lines, _ := layout(t)
	found, rows, row := ownImports(t), map[string]int{}, 0
	for _, line := range lines[1:] { // without the heads of the columns
		for i, name := range strings.Fields(line) {
			if n, err := strconv.Atoi(name); err == nil && i == 0 {
				row = n
				continue
			}
			if rows[name] > 0 {
				t.Errorf("the drawing has %s twice", name)
			}
			rows[name] = row
		}
	}
	cmd := exec.Command("go", "list", "-deps", "./cmd/cowblk")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	test.Must(t, err)
	drawn := 0
	for _, path := range strings.Fields(string(out)) {
		name, own := strings.CutPrefix(path, module)
		if !own {
			continue
		}
		drawn++
		if rows[name] == 0 {
			t.Errorf("the drawing does not have %s", name)
		}
		for _, imp := range found[name] {
			if rows[imp] <= rows[name] {
				t.Errorf("%s in row %d of the drawing imports %s in row %d", name, rows[name], imp,
					rows[imp])
			}
		}
	}
	if drawn != len(rows) {
		t.Errorf("the drawing has %d packages, the binary %d: %v", len(rows), drawn, rows)
	}
}
