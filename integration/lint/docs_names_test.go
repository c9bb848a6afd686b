package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"cowblk/internal/test"
)

// name is a Go name in a document: `Swap`, `Pending.Commit`, `cow.Swap`.
var name = regexp.MustCompile("`([A-Za-z][A-Za-z0-9]*(?:\\.[A-Za-z][A-Za-z0-9]*)?)`")

// The walks through the source name what is there: functions, types, fields and packages, with the
// type or the package that they belong to.
func TestNamesInDocuments(t *testing.T) {
	declared := declarations(t)
	documents, err := filepath.Glob("../../docs/internals/*.md")
	test.Must(t, err)
	checked := 0
	for _, document := range documents {
		text, err := os.ReadFile(document)
		test.Must(t, err)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			ext := filepath.Ext(m[1])
			if ext == ".json" || ext == ".go" || systemNames[m[1]] {
				continue
			}
			checked++
			if !declared[m[1]] {
				t.Errorf("%s names %s, which is not declared", filepath.Base(document), m[1])
			}
		}
	}
	if checked < 20 {
		t.Errorf("found %d names only", checked)
	}
}

// systemNames are names of the kernel.
var systemNames = map[string]bool{"preadv": true, "pwritev": true}

// declarations returns the names that the packages of the main module declare: NAME, PACKAGE.NAME,
// and TYPE.NAME for methods and fields.
func declarations(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, p := range list(t, "../..") {
		pkg := filepath.Base(p.ImportPath)
		names[pkg] = true
		add := func(owner, name string) { names[name], names[owner+"."+name] = true, true }
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, 0)
			test.Must(t, err)
			for _, d := range file.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil {
						add(pkg, d.Name.Name)
						continue
					}
					typ := d.Recv.List[0].Type
					if star, ok := typ.(*ast.StarExpr); ok {
						typ = star.X
					}
					if id, ok := typ.(*ast.Ident); ok {
						add(id.Name, d.Name.Name)
					}
				case *ast.GenDecl:
					for _, s := range d.Specs {
						declare(s, pkg, add)
					}
				}
			}
		}
	}
	return names
}

// declare adds the names of a type with its fields, of constants or of variables.
func declare(s ast.Spec, pkg string, add func(owner, name string)) {
	switch s := s.(type) {
	case *ast.ValueSpec:
		for _, n := range s.Names {
			add(pkg, n.Name)
		}
	case *ast.TypeSpec:
		add(pkg, s.Name.Name)
		if fields, ok := s.Type.(*ast.StructType); ok {
			for _, f := range fields.Fields.List {
				for _, n := range f.Names {
					add(s.Name.Name, n.Name)
				}
			}
		}
	}
}
