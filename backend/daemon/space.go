package daemon

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

// DefaultSpaceLow is the default threshold of free space.
const DefaultSpaceLow = "5%"

// spaceInterval is the interval between checks of the file systems.
const spaceInterval = 5 * time.Second

// Threshold is an amount of free space, absolute or as a share of a file system's size. No free
// space is below the zero value.
type Threshold struct {
	text    string
	bytes   int64
	percent float64
}

var percentForm = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,20})?%$`)

// ParseThreshold parses "5%", a number of bytes in the form of bytesize.Parse, or "off". It refuses
// zero.
func ParseThreshold(s string) (Threshold, error) {
	if s == "off" {
		return Threshold{}, nil
	}
	return parseSpace(s, "5%, 10G, or off")
}

// ParseSpace reads "5%" or a number of bytes as bytesize.Parse has it (10G, of 1024). Zero and
// "off", with which nothing would ever be low, are refused.
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

// String returns text that ParseThreshold parses to the same threshold.
func (t Threshold) String() string {
	if t == (Threshold{}) {
		return "off"
	}
	return t.text
}

// of returns the threshold in bytes on a file system of total bytes.
func (t Threshold) of(total int64) int64 {
	return max(t.bytes, int64(float64(total)*t.percent/100))
}

// fsSpace is the space of a file system.
type fsSpace struct {
	id          uint64 // device number
	free, total int64  // bytes; free to this process
	files       Files
}

// Files counts the files (inodes) of a file system. Zero value: the file system does not count
// them.
type Files struct {
	Free  int64 `json:"files-free"`
	Total int64 `json:"files-total"`
	Least int64 `json:"files-threshold"` // free files below which Low is true
}

// Low reports whether fewer files are free than the threshold.
func (f Files) Low() bool { return f.Total > 0 && f.Free < f.Least }

// fileShare is the threshold of free files in percent where the threshold of space is in bytes.
const fileShare = 5

// files returns f with its threshold.
func (t Threshold) files(f Files) Files {
	share := t.percent
	if share == 0 && t.bytes > 0 {
		share = fileShare
	}
	f.Least = int64(math.Ceil(float64(f.Total) * share / 100))
	return f
}

// FreeSpace returns the free space and threshold of the file system of the regular file at path,
// without Disks. ok is false if there is no such file, or it is a device.
func FreeSpace(path string, t Threshold) (low SpaceLow, ok bool) {
	r, ok := statfs(path)
	return SpaceLow{Path: filepath.Dir(path), Free: r.free, Total: r.total, Threshold: t.of(r.total), Files: t.files(r.files)}, ok
}

// spaceMonitor watches the file systems of the heads. Nothing waits for it: a file system that does
// not answer blocks the monitor only.
type spaceMonitor struct {
	daemon *Daemon
	statfs func(path string) (fsSpace, bool) // false: no file system that can fill up
	low    map[uint64]bool                   // by file system: reported as low
	wake   chan struct{}                     // the limit has changed; capacity one

	mu           sync.Mutex
	limit        Threshold
	limitChanged bool // since the last check
}

func newSpaceMonitor(d *Daemon, limit Threshold) *spaceMonitor {
	return &spaceMonitor{daemon: d, limit: limit, statfs: statfs, low: map[uint64]bool{}, wake: make(chan struct{}, 1)}
}

// run checks at once and then in intervals, until ctx is done.
func (s *spaceMonitor) run(ctx context.Context) {
	if s.daemon.names == nil {
		return // raw files have no heads
	}
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		s.check()
		select {
		case <-tick.C:
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// setLimit changes the threshold. Space that is low then is reported again.
func (s *spaceMonitor) setLimit(t Threshold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit, s.limitChanged = t, true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *spaceMonitor) threshold() Threshold {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit
}

// SpaceLow is the data of COW_SPACE_LOW: a file system of heads with less free space than the
// threshold.
type SpaceLow struct {
	Disks     []string `json:"disks"`     // disks of this process with heads on the file system
	Path      string   `json:"path"`      // a directory of the file system
	Free      int64    `json:"free"`      // bytes
	Total     int64    `json:"total"`     // bytes
	Threshold int64    `json:"threshold"` // bytes; 0: off
	Files              // free files: a new disk or layer needs some
}

// Low reports whether space or files are low.
func (l *SpaceLow) Low() bool { return l.Free < l.Threshold || l.Files.Low() }

// check measures every file system once and reports those that have become low. The state ends when
// a quarter more than the threshold is free.
func (s *spaceMonitor) check() {
	s.mu.Lock()
	limit := s.limit
	if s.limitChanged {
		clear(s.low)
		s.limitChanged = false
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
			s.daemon.log.Warn("space is low: guest writes will fail when it runs out", "disks", strings.Join(f.Disks, ", "),
				"path", f.Path, "free", humanize.IBytes(uint64(f.Free)), "threshold", humanize.IBytes(uint64(f.Threshold)), "free_files", f.Files.Free)
			s.daemon.emit("COW_SPACE_LOW", f)
		case !f.Low() && f.Free >= f.Threshold+f.Threshold/4 && s.low[id]:
			delete(s.low, id)
			s.daemon.log.Info("space is no longer low", "disks", strings.Join(f.Disks, ", "), "path", f.Path, "free", humanize.IBytes(uint64(f.Free)))
		}
	}
}

// survey measures every file system of heads, in the order of the disks.
func (s *spaceMonitor) survey(limit Threshold) (found map[uint64]*SpaceLow, order []uint64) {
	found = map[uint64]*SpaceLow{}
	for _, e := range s.daemon.snapshot() {
		path := s.daemon.names.Data(e.dev.Name())
		if path == "" || e.dev.ReadOnly() {
			continue
		}
		r, ok := s.statfs(path)
		if !ok {
			continue
		}
		f := found[r.id]
		if f == nil {
			f = &SpaceLow{Path: filepath.Dir(path), Free: r.free, Total: r.total, Threshold: limit.of(r.total), Files: limit.files(r.files)}
			found[r.id] = f
			order = append(order, r.id)
		}
		f.Disks = append(f.Disks, e.dev.Name())
	}
	return found, order
}

// query returns every file system of heads, low or not: the answer to query-cow-space.
func (s *spaceMonitor) query() []*SpaceLow {
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

// statfs measures the file system of the regular file at path. It returns false for a block device,
// which a device-mapper table may name: a device cannot grow.
func statfs(path string) (fsSpace, bool) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Statfs(path, &fs) != nil {
		return fsSpace{}, false
	}
	unit := int64(fs.Frsize)
	return fsSpace{id: st.Dev, free: int64(fs.Bavail) * unit, total: int64(fs.Blocks) * unit,
		files: Files{Free: int64(fs.Ffree), Total: int64(fs.Files)}}, true
}
