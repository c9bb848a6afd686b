package lint

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"

	"cowblk/internal/test"
)

// The comment of a package is in its doc.go, and nowhere else.
func TestPackagesHaveDocFiles(t *testing.T) {
	for _, p := range packages(t) {
		documented := false
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil,
				parser.ParseComments|parser.PackageClauseOnly)
			test.Must(t, err)
			if name == "doc.go" {
				documented = file.Doc != nil
			} else if file.Doc != nil {
				t.Errorf("%s/%s has the comment of its package, which belongs in doc.go",
					p.ImportPath, name)
			}
		}
		if !documented && len(p.GoFiles) > 0 {
			t.Errorf("%s: doc.go does not say what the package is", p.ImportPath)
		}
	}
}
