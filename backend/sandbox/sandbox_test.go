package sandbox

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// makeFiles makes the files and the listener that helpers use.
func makeFiles(t *testing.T) *task {
	t.Helper()
	dir, err := os.MkdirTemp("", "confined")
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, sub := range []string{"foreign", "read", "change", "change2", "sockets"} {
		test.Must(t, os.Mkdir(at(sub), 0o700))
	}
	program, err := os.ReadFile("/bin/true")
	test.Must(t, err)
	for path, content := range map[string][]byte{
		at("foreign", "file"): []byte("foreign"), at("read", "file"): []byte("read"),
		at("write"):                 nil,
		at("foreign", "old-before"): nil, at("foreign", "old-after"): nil,
		at("foreign", "mv-before"): nil, at("foreign", "mv-after"): nil,
		at("change", "program"): program,
	} {
		test.Must(t, os.WriteFile(path, content, 0o700))
	}
	for network, address := range map[string]string{"unix": at("foreign", "listens"),
		"unix ": "@" + at("abstract")} {
		l, err := net.Listen(strings.TrimSpace(network), address)
		test.Must(t, err)
		t.Cleanup(func() { l.Close() })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	test.Must(t, err)
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return &task{
		Mode: Require, Dir: dir, Port: port,
		Rules: Rules{
			Change: []string{at("change"), at("change2")}, Write: []string{at("write")},
			Read:    []string{at("read"), "/proc", at("not there")},
			Sockets: []string{at("sockets")},
		},
	}
}

// helper executes the task in another process.
func (k *task) helper(t *testing.T) (a answer) {
	t.Helper()
	text, err := json.Marshal(k)
	test.Must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &a)
	}
	if err != nil {
		t.Fatalf("helper: %v\n%s", err, out)
	}
	return a
}

// denied lists for each op the first version of landlock that denies it, and the error; version 0:
// it is allowed.
var denied = map[string]struct {
	abi  int
	with string
}{
	"read what is open": {}, "read": {}, "list": {}, "write file": {}, "make": {},
	"make directory": {}, "sync directory": {},
	"rename over": {}, "make socket": {}, "connect to a socket": {}, "listen on TCP": {},
	"signal oneself": {},

	"read foreign": {2, "EACCES"}, "write foreign": {2, "EACCES"}, "truncate foreign": {3,
		"EACCES"}, "make foreign": {2, "EACCES"},
	"remove foreign": {2, "EACCES"}, "list foreign": {2, "EACCES"}, "read /etc/passwd": {2,
		"EACCES"},
	"write to read": {2, "EACCES"}, "truncate read": {3, "EACCES"}, "make in read": {2, "EACCES"},
	"rename to foreign": {2, "EACCES"}, "rename from foreign": {2, "EACCES"},
	"link foreign": {2, "EXDEV"}, "symlink": {2, "EACCES"},
	"make foreign socket": {2, "EACCES"}, "connect to TCP": {4, "EACCES"},
	"connect to abstract": {6, "EPERM"}, "signal the parent": {6, "EPERM"},
	"execute": {2, "EACCES"}, "execute one's own": {2, "EACCES"}, "read another process": {2,
		"EACCES"},
}

// kernelABI returns the version of this kernel. The test fails if a kernel that should have
// landlock has none, because nothing could be verified. COWBLK_NO_LANDLOCK=1 in the
// environment accepts that.
func kernelABI(t *testing.T) int {
	t.Helper()
	abi, reason := supported()
	if abi == 0 && os.Getenv("COWBLK_NO_LANDLOCK") == "" {
		t.Fatalf("nothing can be confined here: %s (COWBLK_NO_LANDLOCK=1 accepts that)",
			reason)
	}
	return abi
}

// What a confined process can and cannot do, on threads from before and after, and through an I/O
// engine.
func TestConfined(t *testing.T) {
	abi := kernelABI(t)
	k := makeFiles(t)
	if abi == 0 {
		k.Mode = On
	}
	a := k.helper(t)
	if a.Error != "" || a.Report.ABI != abi {
		t.Fatalf("%+v: %s", a.Report, a.Error)
	}
	for _, thread := range []string{"before", "after"} {
		for op, want := range denied {
			got, done := a.Ops[thread][op]
			expected := ""
			if want.abi > 0 && abi >= want.abi {
				expected = want.with
			}
			if !done || got != expected {
				t.Errorf("%s, on a thread from %s: %q, expected %q", op, thread, got, expected)
			}
		}
		test.Equal(t, len(a.Ops[thread]), len(denied), "ops")
	}
	test.Equal(t, a.Ops["ring"]["read what is open"], "", "the I/O engine")
	if len(a.Status) < 3 || slices.ContainsFunc(a.Status, func(s string) bool { return s != "1" }) {
		t.Errorf("NoNewPrivs of the threads: %v", a.Status)
	}
	if left := missing(abi, &k.Rules); !slices.Equal(left, a.Report.Missing) || abi >= 6 &&
		len(left) > 0 {
		t.Errorf("reported as missing: %v", a.Report.Missing)
	}
}

// Control: without the confinement all ops succeed.
func TestNotConfined(t *testing.T) {
	k := makeFiles(t)
	k.Mode = Off
	a := k.helper(t)
	for op, failed := range a.Ops["before"] {
		// Opening the mem file of a process needs ptrace permission.
		if failed != "" && op != "read another process" {
			t.Errorf("%s: %s", op, failed)
		}
	}
	if a.Report.ABI != 0 || a.Error != "" || slices.Contains(a.Status, "1") {
		t.Errorf("%+v", a)
	}
}

// Without landlock, or with it switched off: On reports it, Require fails, and privileges are given
// up anyway.
func TestWithoutLandlock(t *testing.T) {
	for errno, word := range map[unix.Errno]string{unix.ENOSYS: "not built",
		unix.EOPNOTSUPP: "lsm="} {
		k := makeFiles(t)
		k.Forbid = errno
		a := k.helper(t)
		if !a.Missing || !strings.Contains(a.Error, word) {
			t.Errorf("require: %q", a.Error)
		}
		k = makeFiles(t)
		k.Forbid, k.Mode = errno, On
		a = k.helper(t)
		if a.Error != "" || a.Report.ABI != 0 || !strings.Contains(a.Report.Reason, word) {
			t.Errorf("on: %+v", a)
		}
		test.Equal(t, a.Ops["after"]["read foreign"], "", "on: a foreign file cannot be read")
		if slices.ContainsFunc(a.Status, func(s string) bool { return s != "1" }) {
			t.Errorf("NoNewPrivs of the threads: %v", a.Status)
		}
	}
}

// Invalid rules are refused before anything is given up.
func TestRules(t *testing.T) {
	k := makeFiles(t)
	k.Rules.Change = append(k.Rules.Change, filepath.Join(k.Dir, "write"))
	a := k.helper(t)
	if !strings.Contains(a.Error, "expected a directory") || a.Ops["after"]["read foreign"] != "" {
		t.Errorf("a file to be changed as a directory: %q", a.Error)
	}
	k = makeFiles(t)
	k.Rules.Abstract = true
	if a := k.helper(t); a.Error != "" || a.Ops["after"]["connect to abstract"] != "" ||
		a.Report.ABI > 0 && !slices.Contains(a.Report.Missing,
			"connecting to abstract UNIX sockets") {
		t.Errorf("%s: %s", a.Error, a.Ops["after"]["connect to abstract"])
	}
}

func TestMode(t *testing.T) {
	for _, m := range []Mode{Off, On, Require} {
		text, err := m.MarshalText()
		var got Mode
		if err != nil || got.UnmarshalText(text) != nil || got != m {
			t.Errorf("%v: %q, %v", m, text, err)
		}
	}
	if err := new(Mode).UnmarshalText([]byte("yes")); err == nil {
		t.Error("yes is no mode")
	}
}
