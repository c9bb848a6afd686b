package lint

import (
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sleeps lists the test files that may let time pass (see passesTime), each with the reason why no
// result depends on how long it takes.
var sleeps = map[string]string{
	"backend/control/client_test.go":        "a command that ends with its context only; a peer that does not answer",
	"backend/control/conn_handler_test.go":  "in a bubble of synctest",
	"backend/control/hostile_test.go":       "a slow client",
	"backend/control/server_test.go":        "gives a wrong server the time to err",
	"backend/hostile_crowd_test.go":         "the pace of a load",
	"backend/hostile_driver_test.go":        "a poll that is called a million times",
	"backend/hostile_harness_test.go":       "a pause between checks that are repeated",
	"backend/hostile_limits_test.go":        "a measurement that is shown, not judged",
	"backend/hostile_rig_test.go":           "a pause between checks that are repeated",
	"backend/nbd/limits_test.go":            "in a bubble of synctest",
	"backend/qmp/address_test.go":           "a deadline that has passed",
	"backend/qmp/agent_test.go":             "a slow agent",
	"backend/qmp/machine_test.go":           "a slow QEMU",
	"backend/qmp/main_test.go":              "faults block for ever: the deadline alone ends the call",
	"cmd/cowblk/enospc_test.go":             "a pause between checks that are repeated",
	"cmd/cowblk/idle_test.go":               "an idle period is what is measured",
	"cmd/cowblk/killed_under_load_test.go":  "kills at random moments",
	"cmd/cowblk/open_files_test.go":         "gives a wrong process the time to err",
	"cmd/cowblk/slow_disk_test.go":          "a disk that does not answer, in another process",
	"cmd/cowblk/takeover_fail_test.go":      "kills at random moments",
	"cmd/cowblk/takeover_load_test.go":      "the gap between two processes is measured: a poll every 200 µs",
	"cmd/cowblk/watch_test.go":              "gives watch the time to see a process that ends: it passes without",
	"cow/aio/close_test.go":                 "gives a wrong kernel the time to write",
	"cow/background_test.go":                "in a bubble of synctest",
	"cow/layer/checksums_test.go":           "gives wrong reads the time to arrive",
	"cow/layer/fault_test.go":               "in a bubble of synctest",
	"cow/model_test.go":                     "the pace of a load",
	"cow/store/disk_lock_test.go":           "in a bubble of synctest",
	"cow/store/open_tag_test.go":            "in a bubble of synctest",
	"eventfd/eventfd_test.go":               "a pause between checks that are repeated",
	"integration/bench/scale/calls_test.go": "a disk must have been unchanged for three seconds, which other processes measure",
	"integration/every_qemu_test.go":        "kills at random moments",
	"integration/hotplug_test.go":           "a poll with two ends",
	"integration/kill_test.go":              "kills at random moments",
	"integration/libvirt_test.go":           "a poll with two ends",
	"integration/outage/disk_test.go":       "a poll with three ends",
	"integration/outage/full_test.go":       "gives the server time before there is space: it passes without",
	"integration/outage/host_test.go":       "a poll with three ends",
	"integration/outage/machine_test.go":    "a poll with three ends",
	"vhost/load/load_test.go":               "a load that would run for an hour ends with its context",
	"vhost/virtq/notify_test.go":            "reached only if a wake-up is lost, which fails the test",
}

// proseDirs lists the directories whose tests may look for words in the text of an error or a log.
var proseDirs = map[string]string{
	"cmd/cowblk":  "its output is text: golden scripts have that of commands, tests of processes look for the word that a person needs",
	"cow/finding": "the text of a Finding is what is tested",
	"cow/layer":   "the advice of a Finding",
	"cow/store":   "the advice of a refusal, which depends on the damage",
	"integration": "other processes are seen through their output alone",
}

var (
	searches = regexp.MustCompile(
		`^strings\.(Contains|ContainsAny|HasPrefix|HasSuffix|Count|Index|EqualFold)$`)
	prose  = regexp.MustCompile(`\.Error\(\)$|(?i)\blog\.(string|text)\(\)$|\.Output\(\)$`)
	wanted = regexp.MustCompile(
		`^"|(?i)\b(want|wanterr|wants|text|says|word|words|message|part|advice)$`)
)

var (
	// passesTime matches the calls by which a test can let time pass and then judge.
	passesTime = regexp.MustCompile(`^time\.(Sleep|After|NewTimer|Tick)$|^context\.With(Timeout|Deadline)$`)
	// patient matches durations that are reached only if something hangs.
	patient = regexp.MustCompile(`\b(waitTimeout|waitLimit|patience|time\.Minute|time\.Hour)\b`)
	fails   = regexp.MustCompile(`\.(Fatal|Fatalf|Error|Errorf)\(`)
)

// receivesFrom returns the call in "case <-call():".
func receivesFrom(s ast.Stmt) *ast.CallExpr {
	if e, ok := s.(*ast.ExprStmt); ok {
		if u, ok := e.X.(*ast.UnaryExpr); ok && u.Op == token.ARROW {
			call, _ := u.X.(*ast.CallExpr)
			return call
		}
	}
	return nil
}

// TestTests refuses in tests what judges by time: sleeps, and time-outs that do not fail the test.
// It also refuses comparisons of prose: tests use events, attributes,
// sentinels, and the golden texts of test.Texts.
func TestTests(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files", "*_test.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 100 {
		t.Fatalf("git lists %d files only", len(files))
	}
	slept, searched := map[string]bool{}, map[string]bool{}
	for _, name := range files {
		if strings.HasPrefix(name, "integration/lint/") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, filepath.Join("../..", name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		source := func(n ast.Node) string {
			var b strings.Builder
			_ = printer.Fprint(&b, set, n)
			return b.String()
		}
		failing := map[*ast.CallExpr]bool{} // time-outs that fail the test
		ast.Inspect(file, func(n ast.Node) bool {
			line := func() int { return set.Position(n.Pos()).Line }
			switch n := n.(type) {
			case *ast.CommClause:
				if call := receivesFrom(n.Comm); call != nil {
					for _, s := range n.Body {
						failing[call] = failing[call] || fails.MatchString(source(s))
					}
				}
			case *ast.CallExpr:
				switch f := source(n.Fun); {
				case passesTime.MatchString(f) && (f == "time.Sleep" || !failing[n] &&
					!patient.MatchString(source(n.Args[len(n.Args)-1]))):
					slept[name] = true
					if sleeps[name] == "" {
						t.Errorf(
							"%s:%d: use test.Eventually, synctest or an event, or explain in sleeps why no result depends on the time", name, line())
					}
				case searches.MatchString(f) && prose.MatchString(source(n.Args[0])) &&
					wanted.MatchString(source(n.Args[1])) && source(n.Args[1]) != `"\n"`:
					allowed(t, searched, name, line())
				}
			case *ast.BinaryExpr:
				if (n.Op == token.EQL || n.Op == token.NEQ) && strings.HasSuffix(source(n.X),
					".Error()") && wanted.MatchString(source(n.Y)) {
					allowed(t, searched, name, line())
				}
			}
			return true
		})
	}
	for name := range sleeps {
		if !slept[name] {
			t.Errorf("%s does not sleep any more: remove it from the list", name)
		}
	}
	for dir := range proseDirs {
		if !searched[dir] {
			t.Errorf("%s does not search in prose any more: remove it from the list", dir)
		}
	}
}

// allowed reports a search in prose in a file that is not in proseDirs.
func allowed(t *testing.T, searched map[string]bool, name string, line int) {
	t.Helper()
	dir := filepath.ToSlash(filepath.Dir(name))
	searched[dir] = true
	if proseDirs[dir] == "" {
		t.Errorf("%s:%d: compare a sentinel (errors.Is, errors.As), an attribute (test.Log) or a golden text (test.Texts)", name, line)
	}
}
