package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The command line parses and prints: sockets, locks, goroutines and system calls are the work of
// backend and cow. The exceptions are the two things that belong to the process and to nothing
// below it: its signals, with what to do if a system call outlives one, and its terminal.
func TestCommandLineParsesAndPrints(t *testing.T) {
	exceptions := map[string][]string{
		"signal.go":   {"os/signal", "sync", "go", "chan"},
		"terminal.go": {"golang.org/x/sys/unix"},
	}
	for _, p := range list(t, "../../cmd/cowblk") {
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]bool{}
			for _, imp := range file.Imports {
				path, _ := strconv.Unquote(imp.Path.Value)
				first, _, _ := strings.Cut(path, "/")
				if first == "net" || first == "sync" || path == "os/signal" ||
					strings.HasPrefix(path, "golang.org/x/") {
					found[path] = true
				}
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n.(type) {
				case *ast.GoStmt:
					found["go"] = true
				case *ast.ChanType:
					found["chan"] = true
				}
				return true
			})
			for what := range found {
				if !slices.Contains(exceptions[name], what) {
					t.Errorf("cmd/cowblk/%s uses %s: the command line parses and prints, the work is done in backend and cow", name, what)
				}
			}
			for _, what := range exceptions[name] {
				if !found[what] {
					t.Errorf("cmd/cowblk/%s no longer uses %s: remove the exception", name, what)
				}
			}
			delete(exceptions, name)
		}
	}
	for name := range exceptions {
		t.Errorf("cmd/cowblk/%s is gone: remove the exception", name)
	}
}
