package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	gopackages "golang.org/x/tools/go/packages"
)

// loggers matches the expressions that are loggers: log, d.log, o.Log, log.With(...).
var loggers = regexp.MustCompile(`(?i)(^|\.)(log|slog)$`)

// logCalls gives the index of the message in the arguments of a logger's methods; -1: none.
var logCalls = map[string]int{"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "DebugContext": 1,
	"InfoContext": 1, "WarnContext": 1, "ErrorContext": 1, "Log": 2, "With": -1}

// errorKeys are the keys that others use for an error or the reason of an event.
var errorKeys = map[string]bool{"cause": true, "e": true, "error": true, "message": true,
	"msg": true, "problem": true, "reason": true, "why": true}

// logKey is the form of a key.
var logKey = regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)

// TestLogCalls demands constant messages, so that lines can be found and counted, and constant
// keys; "err" is the one for an error or a reason.
func TestLogCalls(t *testing.T) {
	calls := 0
	for _, p := range packages(t) {
		if under(p.ImportPath, "integration") {
			continue
		}
		var files []*ast.File
		set := token.NewFileSet()
		constants := map[string]bool{}
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
			ast.Inspect(file, func(n ast.Node) bool {
				if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
					for _, s := range d.Specs {
						for _, id := range s.(*ast.ValueSpec).Names {
							constants[id.Name] = true
						}
					}
				}
				return true
			})
		}
		for _, file := range files {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				s, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || !loggers.MatchString(lastName(s.X)) {
					return true
				}
				message, ok := logCalls[s.Sel.Name]
				if !ok {
					return true
				}
				calls++
				at := set.Position(call.Pos())
				if message >= 0 && !isConstant(call.Args[message], constants) {
					t.Errorf("%s: the message is not constant: use attributes", at)
				}
				for i := message + 1; i < len(call.Args); i += 2 {
					l, ok := call.Args[i].(*ast.BasicLit)
					if !ok {
						t.Errorf("%s: argument %d is no constant key", at, i+1)
						break
					}
					key, _ := strconv.Unquote(l.Value)
					switch {
					case errorKeys[key]:
						t.Errorf("%s: key %q: errors and reasons have the key err", at, key)
					case !logKey.MatchString(key):
						t.Errorf("%s: key %q: use lower-case words and underscores", at, key)
					}
				}
				return true
			})
		}
	}
	if calls < 100 {
		t.Errorf("found %d calls of loggers only", calls)
	}
}

// TestLogValues refuses slices, arrays and maps as values, which print in Go's syntax. A type with
// a String method prints as that.
func TestLogValues(t *testing.T) {
	all, err := gopackages.Load(&gopackages.Config{Mode: gopackages.LoadSyntax, Dir: "../.."},
		"./...")
	if err != nil || len(all) < 10 {
		t.Fatal(len(all), err)
	}
	calls := 0
	for _, p := range all {
		for _, file := range p.Syntax {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				s, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				f, ok := p.TypesInfo.Uses[s.Sel].(*types.Func)
				if _, log := logCalls[s.Sel.Name]; !ok || !log || f.Pkg() == nil ||
					f.Pkg().Path() != "log/slog" {
					return true
				}
				calls++
				for _, a := range call.Args {
					v := p.TypesInfo.TypeOf(a)
					if m, _, _ := types.LookupFieldOrMethod(v, true, nil, "String"); m != nil {
						continue
					}
					switch v.Underlying().(type) {
					case *types.Slice, *types.Array, *types.Map:
						if !call.Ellipsis.IsValid() {
							t.Errorf("%s: a value of type %s: make it a text",
								p.Fset.Position(a.Pos()), v)
						}
					}
				}
				return true
			})
		}
	}
	if calls < 100 {
		t.Errorf("found %d calls of loggers only", calls)
	}
}

// lastName returns the last name of a selector, and that of the logger for log.With(...).
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr:
		if s, ok := e.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "With" {
			return lastName(s.X)
		}
	}
	return ""
}

// isConstant reports whether e is made of literals and constants of the package.
func isConstant(e ast.Expr, constants map[string]bool) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.Ident:
		return constants[e.Name]
	case *ast.BinaryExpr:
		return isConstant(e.X, constants) && isConstant(e.Y, constants)
	}
	return false
}
