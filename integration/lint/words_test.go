package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// replaced are words that the house had before it took those of the field, and what to say instead.
// CONTRIBUTING.md has the words in use. They are refused in identifiers, comments, texts, documents
// and names of files, also as a part of a name, in the plural, and those of six letters or more in
// compounds.
var replaced = map[string]string{
	"bell":        "notifier",
	"calm":        "log limiter",
	"calmed":      "log limiter",
	"crew":        "thread pool",
	"distrust":    "drop the page cache",
	"handover":    "takeover",
	"idler":       "busy poll",
	"keeper":      "store",
	"mailbox":     "scheduled functions",
	"mortal":      "shared map",
	"postpone":    "submit asynchronously",
	"predecessor": "old process",
	"relic":       "what a takeover leaves",
	"shortage":    "ENOSPC",
	"sparing":     "throttle",
	"survival":    "shared map",
	"survivor":    "shared map",
	"unkept":      "unshared",
	"unowned":     "that the head does not own",
	"whoever":     "a caller that, any user that",
	"whosoever":   "a caller that",
	"wipe":        "zero",
}

// replacedPhrases are refused in all text.
var replacedPhrases = regexp.MustCompile(`(?i)\bhand-overs?\b|\bwork director(y|ies)\b|\bworkdirs?\b|` +
	`\b(is|are|was|were) told (of|as)\b|\bwith who has\b|\b(those|somebody|nobody) who\b`)

// replacedParts are refused as a part of an identifier only: they are English words.
var replacedParts = map[string]string{
	"carried":  "received",
	"inherit":  "takeOver",
	"mail":     "scheduled",
	"recall":   "recoverUnflushed",
	"rehearse": "preflight",
	"settle":   "synchronize",
	"settled":  "waitOldWriters, synchronize",
	"stroke":   "notify",
	"tidy":     "removeStale",
}

// replacedNames are identifiers that are gone. Their words are in use elsewhere.
var replacedNames = strings.Fields("AllRight Checked Forget Keeper Leave OnFull Recall Relics Right Seen " +
	"SeenWhole askLimit askServing bellStroke firstWipe goOn guess heldGuests holdUp house idler " +
	"keepPin keepReleasing landing letGo letPinGo live lookAfter lookOut noteIsGone pace " +
	"pendingNames post readMail releaseHeld remoteList storeNames takeUp turnAway waitQuiet " +
	"wakeQuiet wipeBlocks workIsDead woken budget predecessor")

// replacedDeclarations are names that are gone from the product in a directory and those below it,
// where they were names of functions, methods, types, fields or variables of a package. A local
// variable may have one: they are English words.
var replacedDeclarations = map[string][]string{
	"backend": strings.Fields("Names Note Readable ahead await calm do full held hangUp keep kept look " +
		"mail measure note readers rest room stay stuck sums texts told unblock until"),
	"cmd/cowblk": strings.Fields("Keeper Names given live opened storeNames"),
	"cow": strings.Fields("Carried Leave Note Recall again ahead armed certain hand landing late later " +
		"ring settle spare tidy unowned until wipe works"),
}

// parts matches the words of a text, and the parts of an identifier: those that begin with a
// capital letter.
var parts = regexp.MustCompile(`[A-Z]?[a-z]+|[A-Z]+`)

// use returns what to say instead of a word; empty: it is in use.
func use(word string, table map[string]string) string {
	word = strings.ToLower(word)
	for _, plural := range []string{"", "s", "es"} {
		if w, ok := strings.CutSuffix(word, plural); ok && table[w] != "" {
			return table[w]
		}
	}
	return ""
}

// compound returns the replaced word of six letters or more that word contains.
func compound(word string) string {
	for w := range replaced {
		if len(w) >= 6 && strings.Contains(strings.ToLower(word), w) {
			return w
		}
	}
	return ""
}

// checkLine reports the replaced words in a line of text, or in the name of a file.
func checkLine(t *testing.T, where, line string) {
	t.Helper()
	if w := replacedPhrases.FindString(line); w != "" {
		t.Errorf("%s: %q is called otherwise now: see CONTRIBUTING.md", where, w)
	}
	for _, w := range parts.FindAllString(line, -1) {
		if say := use(w, replaced); say != "" {
			t.Errorf("%s: %q: say %s", where, w, say)
		} else if c := compound(w); c != "" {
			t.Errorf("%s: %q: say %s", where, w, replaced[c])
		}
	}
}

// row matches a word and its meaning in the tables of CONTRIBUTING.md.
var row = regexp.MustCompile(`(?m)^\| ([a-z][^|]*) \| ([^|]+) \|$`)

// TestEngineDefinesItsWords demands that the engine's doc.go defines the engine's words as
// CONTRIBUTING.md does.
func TestEngineDefinesItsWords(t *testing.T) {
	text, err := os.ReadFile("../../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## Words\n")
	table, _, _ = strings.Cut(table, "\n## ")
	doc, err := os.ReadFile("../../cow/doc.go")
	if err != nil {
		t.Fatal(err)
	}
	defined, _, _ := strings.Cut(string(doc), "\n// # A stack\n")
	// one line for each definition
	defined = regexp.MustCompile(`\n//     +`).ReplaceAllString(defined, " ")
	rows := row.FindAllStringSubmatch(table, -1)
	if len(rows) < 30 {
		t.Fatalf("CONTRIBUTING.md has %d words only", len(rows))
	}
	for _, r := range rows {
		word, meaning := r[1], r[2]
		if word == "word" || notEngine[word] {
			continue
		}
		if !strings.Contains(defined, "//   - "+word+": "+meaning+"\n") {
			t.Errorf("cow/doc.go does not say, as CONTRIBUTING.md does: %s: %s", word, meaning)
		}
	}
}

// notEngine are the words of CONTRIBUTING.md for what the engine does not know.
var notEngine = map[string]bool{
	"slot": true, "worker": true, "scheduled function": true, "busy poll": true, "export": true,
	"front-end, driver": true, "quiesce, thaw": true, "takeover": true, "sandbox": true,
	"base, image": true, "tag": true, "journal": true, "reserve": true, "cut": true, "park": true,
	"transaction": true,
}

// TestReplacedWords looks at all text that git has, except this file and corpora of fuzz tests.
func TestReplacedWords(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 100 {
		t.Fatalf("git lists %d files only", len(files))
	}
	for _, name := range files {
		if name == "integration/lint/words_test.go" || strings.Contains(name, "/testdata/fuzz/") {
			continue
		}
		checkLine(t, "name of "+name, name)
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue // not a text
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			checkLine(t, position(name, n), line)
		}
		if strings.HasSuffix(name, ".go") {
			checkIdentifiers(t, name, text)
		}
	}
}

// checkIdentifiers reports identifiers of a Go file that are gone.
func checkIdentifiers(t *testing.T, name string, text []byte) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var here []string
	for dir, names := range replacedDeclarations {
		if strings.HasPrefix(name, dir+"/") && !strings.HasSuffix(name, "_test.go") &&
			!strings.HasPrefix(name, "cow/cowtest/") {
			here = names
		}
	}
	report := func(id *ast.Ident, say string) {
		t.Errorf("%s: the identifier %s is called otherwise now: %s",
			position(name, set.Position(id.Pos()).Line), id.Name, say)
	}
	declares := func(ids ...*ast.Ident) {
		for _, id := range ids {
			if slices.Contains(here, id.Name) {
				report(id, "see CONTRIBUTING.md")
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			if slices.Contains(replacedNames, n.Name) {
				report(n, "see CONTRIBUTING.md")
			}
			for _, w := range parts.FindAllString(n.Name, -1) {
				if say := use(w, replacedParts); say != "" {
					report(n, say)
				}
			}
		case *ast.FuncDecl:
			declares(n.Name)
		case *ast.TypeSpec:
			declares(n.Name)
		case *ast.StructType:
			for _, f := range n.Fields.List {
				declares(f.Names...)
			}
		}
		return true
	})
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			for _, s := range g.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					declares(v.Names...)
				}
			}
		}
	}
}

// position is the place of a line in a file.
func position(name string, line int) string { return fmt.Sprintf("%s:%d", name, line) }
