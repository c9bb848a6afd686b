package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// updateEnv, if set, makes TestScripts rewrite the golden files. Read the diff before you commit
// it.
const updateEnv = "COWBLK_UPDATE_SCRIPTS"

// TestScripts runs testdata/script/*.txt. A line "$ COMMAND" is run; its output follows, standard
// error marked "2> ", then "exit N" if the exit code is not 0. (*script).builtin has the commands
// other than cowblk.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			file, err := filepath.Abs(file)
			test.Must(t, err)
			want, err := os.ReadFile(file)
			test.Must(t, err)
			s := newScript(t)
			got := s.run(string(want))
			if os.Getenv(updateEnv) != "" {
				test.Must(t, os.WriteFile(file, []byte(got), 0o644))
				return
			}
			compare(t, string(want), got)
		})
	}
}

// compare reports the first line that differs, with its command.
func compare(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	command := ""
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if strings.HasPrefix(a, "$ ") {
			command = a
		}
		if a != b {
			t.Fatalf("line %d, after %s\nwant %s\ngot  %s\n(%s=1 accepts what it is now)", i+1,
				command, a, b, updateEnv)
		}
	}
}

// script runs commands in a new directory with its own store.
type script struct {
	t     *testing.T
	dir   string
	held  map[string]*store.Opened
	uuids map[string]string // as printed → UUID-1, UUID-2, ...
}

func newScript(t *testing.T) *script {
	s := &script{t: t, dir: fixedDir(t), held: map[string]*store.Opened{},
		uuids: map[string]string{}}
	t.Chdir(s.dir)
	t.Cleanup(func() {
		for _, o := range s.held {
			o.Close()
		}
	})
	return s
}

// fixedDir returns a new directory whose path has a fixed length, so that columns have a fixed
// width.
func fixedDir(t *testing.T) string {
	const length = 60
	dir := t.TempDir()
	short, err := os.MkdirTemp("", "")
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(short) })
	if len(short) < length-1 {
		dir = short + "/" + strings.Repeat("d", length-1-len(short))
	}
	test.Must(t, os.MkdirAll(dir, 0o755))
	return dir
}

func (s *script) app(out, err io.Writer) *app {
	return &app{
		in: strings.NewReader(""), out: out, err: err,
		getenv: func(k string) string {
			return map[string]string{"COWBLK_STORE": filepath.Join(s.dir, "store"),
				"HOME": s.dir}[k]
		},
		terminal: func(any) bool { return false },
		width:    func(any) int { return 0 },
		kvm:      func() bool { return false },
	}
}

func (s *script) run(text string) string {
	var b strings.Builder
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "$ "):
			b.WriteString(line + "\n")
			b.WriteString(s.clean(s.command(line[2:])))
		case strings.HasPrefix(line, "#"), line == "" && !strings.HasSuffix(b.String(), "\n\n"):
			b.WriteString(line + "\n")
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func (s *script) command(line string) string {
	args := split(line)
	if args[0] != "cowblk" {
		s.builtin(args)
		return ""
	}
	var out, errOut bytes.Buffer
	code := run(args[1:], s.app(&out, &errOut))
	var b strings.Builder
	b.Write(out.Bytes())
	for _, l := range strings.Split(strings.TrimSuffix(errOut.String(), "\n"), "\n") {
		if l != "" {
			b.WriteString("2> " + l + "\n")
		}
	}
	if code != 0 {
		fmt.Fprintf(&b, "exit %d\n", code)
	}
	return b.String()
}

// split splits a line into words; quotes keep blanks.
func split(line string) []string {
	var words []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

var (
	uuidText  = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	timeText  = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?( \([^)]*\))?`)
	stampText = regexp.MustCompile(`20\d{6}T\d{6}Z`)
	pidText   = regexp.MustCompile(`(process |kill |"pid": )` + strconv.Itoa(os.Getpid()))
	inodeText = regexp.MustCompile(`("(dev|inode|mtime|allocated|freed)": )\d+`)
	sumText   = regexp.MustCompile(`0x[0-9a-f]{8}`)
	lowText   = regexp.MustCompile(`(space is low for .*): .* (free in .*), less than .*`)
	freedText = regexp.MustCompile(`(layers?, )[0-9.]+ [KM]?i?B`)
)

// clean replaces text that differs from run to run.
func (s *script) clean(text string) string {
	text = strings.ReplaceAll(text, s.dir, "$DIR")
	text = uuidText.ReplaceAllStringFunc(text, func(id string) string {
		if id == uuid.Nil.String() {
			return id
		}
		if s.uuids[id] == "" {
			s.uuids[id] = fmt.Sprintf("UUID-%d", len(s.uuids)+1)
		}
		return s.uuids[id]
	})
	text = timeText.ReplaceAllString(text, "TIME")
	text = stampText.ReplaceAllString(text, "STAMP")
	text = pidText.ReplaceAllString(text, "${1}PID")
	text = inodeText.ReplaceAllString(text, "${1}N")
	text = sumText.ReplaceAllString(text, "0xSUM")
	text = lowText.ReplaceAllString(text, "$1: SPACE $2, less than SPACE")
	return freedText.ReplaceAllString(text, "${1}SPACE")
}

// builtin executes commands that prepare the state under test.
func (s *script) builtin(args []string) {
	s.t.Helper()
	var err error
	switch args[0] {
	case "file": // NAME SEED BYTES: noise
		err = os.WriteFile(args[1], randomBytes(s.number(args[2]), int(s.number(args[3]))), 0o644)
	case "zeros": // NAME BYTES
		err = os.WriteFile(args[1], make([]byte, s.number(args[2])), 0o644)
	case "touch": // NAME
		err = os.Chtimes(args[1], time.Time{}, time.Unix(1e9, 0))
	case "write": // DISK OFFSET BYTES
		o := s.open(args[1])
		if _, err = o.Disk.WriteAt(randomBytes(99, int(s.number(args[3]))),
			int64(s.number(args[2]))); err == nil {
			err = o.Close()
		}
	case "hold": // DISK: lock it as a daemon does
		o := s.open(args[1])
		s.held[args[1]] = o
		err = o.Lock.SetServing(store.Serving{PID: os.Getpid(), Socket: filepath.Join(s.dir,
			args[1]+".sock")})
	case "release": // DISK
		err = s.held[args[1]].Close()
		delete(s.held, args[1])
	case "bitflip": // DISK OFFSET: in the map of the head
		err = s.alter(args[1], func(m string, _ string) error {
			return flipBit(m, int64(s.number(args[2])))
		})
	case "truncate": // DISK BYTES: the data of the head
		err = s.alter(args[1], func(_, d string) error {
			return os.Truncate(d, int64(s.number(args[2])))
		})
	case "remove": // PATH
		err = os.Remove(args[1])
	case "damage": // DISK: the header of the head's map
		var m *store.Manifest
		if m, err = s.store().Disk(args[1]); err == nil {
			err = os.Truncate(filepath.Join(s.dir, "store", m.Head().Map), 100)
		}
	default:
		s.t.Fatalf("script: no command %q", args[0])
	}
	test.Must(s.t, err, "script", args)
}

// alter changes the files of a disk's head.
func (s *script) alter(disk string, change func(mapPath, dataPath string) error) error {
	m, err := s.store().Disk(disk)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "store")
	return change(filepath.Join(dir, m.Head().Map), filepath.Join(dir, m.Head().Data))
}

func flipBit(path string, off int64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data[off] ^= 0x10
	return os.WriteFile(path, data, 0o600)
}

func (s *script) store() *store.Store {
	s.t.Helper()
	st, err := s.app(io.Discard, io.Discard).openStore()
	test.Must(s.t, err)
	return st
}

func (s *script) open(disk string) *store.Opened {
	s.t.Helper()
	o, err := s.store().OpenDisk(context.Background(), disk, store.OpenOptions{})
	test.Must(s.t, err)
	return o
}

func (s *script) number(text string) uint64 {
	s.t.Helper()
	n, err := strconv.ParseUint(text, 10, 63)
	test.Must(s.t, err)
	return n
}

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}
