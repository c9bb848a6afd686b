package backend

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"cowblk/cow/bytesize"
)

// DefaultSpaceLow is the threshold when nothing else is said.
const DefaultSpaceLow = "5%"

// spaceInterval is how often the file systems are looked at.
const spaceInterval = 5 * time.Second

// Threshold is an amount of free space, absolute or as a share of a file
// system's size. The zero value is nothing: no free space is below it.
type Threshold struct {
	text    string
	bytes   int64
	percent float64
}

var percentForm = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,20})?%$`)

// ParseThreshold reads "off" and what ParseSpace does.
func ParseThreshold(s string) (Threshold, error) {
	if s == "off" {
		return Threshold{}, nil
	}
	return parseSpace(s, "5%, 10G, or off")
}

// ParseSpace reads "5%" or a number of bytes as bytesize.Parse has it (10G, of 1024).
// Zero and "off", with which nothing would ever be low, are refused.
func ParseSpace(s string) (Threshold, error) { return parseSpace(s, "5% or 10G") }

func parseSpace(s, examples string) (Threshold, error) {
	t := Threshold{text: s}
	switch {
	case s == "off": // as zero
	case strings.HasSuffix(s, "%"):
		p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !percentForm.MatchString(s) || p > 100 {
			return Threshold{}, fmt.Errorf("%q is no part of a file system; expected 100%% or less, such as 5%% or 0.5%%", s)
		}
		t.percent = p
	default:
		v, err := bytesize.Parse(s, 1, math.MaxInt64)
		if err != nil {
			return Threshold{}, fmt.Errorf("%w\nexpected an amount of free space such as %s", err, examples)
		}
		t.bytes = v
	}
	if t.percent == 0 && t.bytes == 0 {
		return Threshold{}, fmt.Errorf("%q: nothing would ever be low; expected an amount of free space such as %s", s, examples)
	}
	return t, nil
}

// String is what ParseThreshold reads.
func (t Threshold) String() string {
	if t == (Threshold{}) {
		return "off"
	}
	return t.text
}

// of is the threshold in bytes on a file system of that many.
func (t Threshold) of(total int64) int64 {
	return max(t.bytes, int64(float64(total)*t.percent/100))
}

// room is a file system as it is now.
type room struct {
	id          uint64 // device number
	free, total int64  // bytes; free to this process
	files       Files
}

// Files says how many files (inodes) a file system has room for. The zero value: it does not count them.
type Files struct {
	Free  int64 `json:"files-free"`
	Total int64 `json:"files-total"`
	Least int64 `json:"files-threshold"` // that should be free
}

// Low reports whether fewer are free than should be.
func (f Files) Low() bool { return f.Total > 0 && f.Free < f.Least }

// fileShare is how many of a file system's files should be free where the threshold is one of bytes, in percent.
const fileShare = 5

// files adds how many should be free: the threshold's share, if it is one.
func (t Threshold) files(f Files) Files {
	share := t.percent
	if share == 0 && t.bytes > 0 {
		share = fileShare
	}
	f.Least = int64(math.Ceil(float64(f.Total) * share / 100))
	return f
}

// FreeSpace tells how much is free, and how much should be, on the file system that the
// regular file at path grows on. Disks are not named. False: there is no such file, or it is a
// device, which cannot grow.
func FreeSpace(path string, t Threshold) (low SpaceLow, ok bool) {
	r, ok := measure(path)
	return SpaceLow{Path: filepath.Dir(path), Free: r.free, Total: r.total, Threshold: t.of(r.total), Files: t.files(r.files)}, ok
}

// space watches the file systems that the heads lie on. Nobody waits for it: a
// file system that does not answer holds up the watching alone.
type space struct {
	daemon  *Daemon
	measure func(path string) (room, bool) // false: nothing there that can fill up
	low     map[uint64]bool                // by file system: told, and not better yet
	wake    chan struct{}                  // limit was changed; holds one

	mu    sync.Mutex
	limit Threshold
	fresh bool // limit was changed
}

func newSpace(d *Daemon, limit Threshold) *space {
	return &space{daemon: d, limit: limit, measure: measure, low: map[uint64]bool{}, wake: make(chan struct{}, 1)}
}

// run looks at once and then in intervals, until ctx is done.
func (s *space) run(ctx context.Context) {
	if s.daemon.names == nil {
		return // raw files have no heads that grow
	}
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		s.look()
		select {
		case <-tick.C:
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// setLimit puts a new threshold in force; what is low then is told again.
func (s *space) setLimit(t Threshold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit, s.fresh = t, true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *space) threshold() Threshold {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit
}

// SpaceLow is the data of COW_SPACE_LOW: a file system that heads grow on has
// less room than it should.
type SpaceLow struct {
	Disks     []string `json:"disks"`     // of this process, with their heads on it
	Path      string   `json:"path"`      // a directory on it
	Free      int64    `json:"free"`      // bytes
	Total     int64    `json:"total"`     // bytes
	Threshold int64    `json:"threshold"` // bytes; 0: off
	Files              // without one no disk or layer can be made
}

// Low reports whether less is free than should be.
func (l *SpaceLow) Low() bool { return l.Free < l.Threshold || l.Files.Low() }

// look measures every file system once and tells what has become low. Low is
// over when a quarter more than the threshold is free.
func (s *space) look() {
	s.mu.Lock()
	limit := s.limit
	if s.fresh {
		clear(s.low)
		s.fresh = false
	}
	s.mu.Unlock()
	if limit == (Threshold{}) {
		return
	}
	found, order := s.survey(limit)
	for _, id := range order {
		f := found[id]
		switch {
		case f.Low() && !s.low[id]:
			s.low[id] = true
			s.daemon.log.Warn("little space is left for what guests write: free some, or their writes will fail", "disks", strings.Join(f.Disks, ", "),
				"path", f.Path, "free", humanize.IBytes(uint64(f.Free)), "threshold", humanize.IBytes(uint64(f.Threshold)), "free_files", f.Files.Free)
			s.daemon.emit("COW_SPACE_LOW", f)
		case !f.Low() && f.Free >= f.Threshold+f.Threshold/4 && s.low[id]:
			delete(s.low, id)
			s.daemon.log.Info("space is no longer low", "disks", strings.Join(f.Disks, ", "), "path", f.Path, "free", humanize.IBytes(uint64(f.Free)))
		}
	}
}

// survey measures every file system that heads lie on, in the order of the disks.
func (s *space) survey(limit Threshold) (found map[uint64]*SpaceLow, order []uint64) {
	found = map[uint64]*SpaceLow{}
	for _, e := range s.daemon.snapshot() {
		path := s.daemon.names.Data(e.dev.name)
		if path == "" || e.dev.config.ReadOnly {
			continue
		}
		r, ok := s.measure(path)
		if !ok {
			continue
		}
		f := found[r.id]
		if f == nil {
			f = &SpaceLow{Path: filepath.Dir(path), Free: r.free, Total: r.total, Threshold: limit.of(r.total), Files: limit.files(r.files)}
			found[r.id] = f
			order = append(order, r.id)
		}
		f.Disks = append(f.Disks, e.dev.name)
	}
	return found, order
}

// query answers query-cow-space: every file system that heads lie on, low or not.
func (s *space) query() []*SpaceLow {
	all := []*SpaceLow{}
	if s.daemon.names == nil {
		return all
	}
	found, order := s.survey(s.threshold())
	for _, id := range order {
		all = append(all, found[id])
	}
	return all
}

// measure asks the kernel about the file system of path. A block device, which
// a device-mapper table may name, is as large as it is.
func measure(path string) (room, bool) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Statfs(path, &fs) != nil {
		return room{}, false
	}
	unit := int64(fs.Frsize)
	return room{id: st.Dev, free: int64(fs.Bavail) * unit, total: int64(fs.Blocks) * unit,
		files: Files{Free: int64(fs.Ffree), Total: int64(fs.Files)}}, true
}
