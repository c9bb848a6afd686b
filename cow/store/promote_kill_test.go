package store

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

const (
	killSize   = 1 << 20
	killSector = 512
	killTag    = "u"
)

// history is the legal content of one disk of a killed process. Every write fills its sectors with
// its own number.
type history struct {
	name    string
	writes  int           // made, acknowledged or not
	at      map[int][]int // sector → numbers of the writes that touched it, in order
	flushed int           // the last write that an acknowledged flush covers
	cut     int           // the last write before the swap; -1: it was not made
}

// scene is the life of a process that promotes open disks while they are written.
type scene struct {
	dir     string      // of the store
	files   *faultfs.FS // over a faultfs.KillFS
	disks   []*history
	open    []*Opened
	sealing []*cow.Promotion
	// behind: the former heads are sealed after writes and flushes to the new heads. Otherwise
	// before.
	behind bool
}

// play runs the process. It ends early if the process is killed.
func (c *scene) play(s *Store) error {
	var manifests []*Manifest
	for _, h := range c.disks {
		o, err := s.OpenDisk(ctx, h.name, OpenOptions{Serve: true})
		if err != nil {
			return err
		}
		c.open = append(c.open, o)
		manifests = append(manifests, o.Manifest)
	}
	// Blocks have 4 KiB. Writes cover whole blocks and parts, and overwrite. The last two are not
	// flushed before the swap.
	if err := c.do(c.write(0, 8192), c.write(12288, 512), c.flush, c.write(0, 4096),
		c.write(16384, 4096)); err != nil {
		return err
	}
	p, err := s.PreparePromotion(ctx, manifests, killTag)
	if err != nil {
		return err
	}
	swapped := false
	defer func() { p.Close(swapped) }()
	for i, o := range c.open {
		promotion, err := o.Disk.Prepare(p.Heads()[i])
		if err != nil {
			return err
		}
		c.sealing = append(c.sealing, promotion)
	}
	if err := c.do(c.write(20480, 4096), p.Commit); err != nil {
		return err
	}
	for _, h := range c.disks {
		h.cut = h.writes
	}
	resume := c.holdSealing(s, manifests)
	defer resume()
	if err := cow.Swap(c.sealing...); err != nil {
		return err
	}
	swapped = true
	if c.behind {
		// Whole blocks: a write of a part of a block waits for the writes to the former head.
		if err := c.do(c.write(24576, 4096), c.flush, c.write(0, 4096)); err != nil {
			return err
		}
	}
	resume()
	c.sealed()
	if err := c.do(c.write(512, 512), c.flush, c.write(16896, 512)); err != nil {
		return err
	}
	return c.do(c.flush, c.write(28672, 4096))
}

func (c *scene) do(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (c *scene) write(off, n int) func() error {
	return func() error {
		for i, h := range c.disks {
			h.writes++
			for s := off / killSector; s < (off+n)/killSector; s++ {
				h.at[s] = append(h.at[s], h.writes)
			}
			if _, err := c.open[i].Disk.WriteAt(bytes.Repeat([]byte{byte(h.writes)}, n),
				int64(off)); err != nil {
				return err
			}
		}
		return nil
	}
}

func (c *scene) flush() error {
	for i, h := range c.disks {
		if err := c.open[i].Disk.Flush(); err != nil {
			return err
		}
		h.flushed = h.writes
	}
	return nil
}

// holdSealing delays a write to each head, for which its sealing waits, until resume is called. The
// write changes nothing: it writes zeros over zeros.
func (c *scene) holdSealing(s *Store, manifests []*Manifest) (resume func()) {
	held, release := make(chan struct{}, len(manifests)), make(chan struct{})
	heads := map[string]bool{}
	for _, m := range manifests {
		heads[s.paths(m.Head()).Data] = true
	}
	c.files.OnCall(func(call faultfs.Call) error {
		if call.Op == "write" && heads[call.Name] {
			held <- struct{}{}
			<-release
		}
		return nil
	})
	var writes sync.WaitGroup
	for _, o := range c.open {
		ended := make(chan struct{})
		writes.Go(func() {
			defer close(ended)
			// the write of a dead process fails
			_, _ = o.Disk.WriteAt(make([]byte, killSector), killSize-killSector)
		})
		select {
		case <-held:
		case <-ended:
		}
	}
	return sync.OnceFunc(func() { close(release); writes.Wait() })
}

func (c *scene) sealed() {
	for _, p := range c.sealing {
		<-p.Done()
	}
}

// end is the end of the last process, if it is not killed, and frees the memory of a killed one.
func (c *scene) end() error {
	var errs []error
	for _, o := range c.open {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

// A process is killed at each change of a file while it promotes one disk, or two together. The
// next process finds all disks on the old heads or all on the new heads, with the flushed writes,
// and the tags with the writes before the swap.
func TestKillAtEveryStepOfPromotion(t *testing.T) {
	for _, disks := range []int{1, 2} {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("disks=%d/behind=%v", disks, behind), func(t *testing.T) {
				killed, old := 0, 0
				for n := 1; ; n++ {
					c, m := killedAt(t, n, disks, behind)
					t.Run(fmt.Sprint(n), func(t *testing.T) {
						if promoted := openAfterKill(t, c); !promoted {
							old++
						}
					})
					if t.Failed() {
						t.Fatalf("killed at change %d: %s", n, last(m))
					}
					if !m.Killed() {
						break
					}
					killed++
				}
				if old == 0 || old == killed || killed < 40 {
					t.Errorf("killed %d times, %d of them before the cut: the test misses its subject", killed, old)
				}
				t.Logf("killed at each of %d changes: %d times on the old heads, %d on the new",
					killed, old, killed-old)
			})
		}
	}
}

func last(m *faultfs.KillFS) string {
	if c := m.Changes(); len(c) > 0 {
		return c[len(c)-1].String()
	}
	return "none"
}

// killedAt plays the scene on a new store in a process that dies at its n-th change. The
// promotion's first change is number 1.
func killedAt(t *testing.T, n, disks int, behind bool) (*scene, *faultfs.KillFS) {
	t.Helper()
	s := newStore(t)
	s.fs = withoutSync()
	c := &scene{dir: s.Dir(), behind: behind}
	for i := range disks {
		h := &history{name: fmt.Sprintf("vm%d", i+1), at: map[int][]int{}, cut: -1}
		create(t, s, h.name, CreateOptions{Size: killSize})
		c.disks = append(c.disks, h)
	}
	m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n, Begin: func(c faultfs.Call) bool {
		return c.Op == "mkdir" && filepath.Dir(c.Name) == s.path(tmpDir)
	}})
	c.files = faultfs.Over(m, nil)
	s.fs = c.files
	err := c.play(s)
	if err := errors.Join(err, c.end()); err != nil && !m.Killed() {
		t.Fatalf("killed at change %d: %v", n, err)
	}
	m.CloseFiles()
	s.fs = vfs.OS{}
	return c, m
}

// openAfterKill opens the disks of a dead process and checks them.
func openAfterKill(t *testing.T, c *scene) (promoted bool) {
	t.Helper()
	s := openStore(t, c.dir)
	s.fs = withoutSync()
	for i, h := range c.disks {
		got := content(t, s, h.name)
		manifest := manifestOf(t, s, h.name)
		_, err := manifest.Tagged(killTag)
		if i > 0 && promoted != (err == nil) {
			t.Errorf("%s has the tag: %v, the other disk: %v", h.name, err == nil, promoted)
		}
		promoted = err == nil
		if !promoted && h.cut >= 0 {
			t.Errorf("%s: the cut was made, and the tag is not there", h.name)
		}
		h.check(t, h.name, got, h.flushed, h.writes)
		if promoted {
			cut := h.cut
			if cut < 0 {
				cut = h.writes
			}
			create(t, s, h.name+"-tag", CreateOptions{From: h.name + "@" + killTag})
			h.check(t, h.name+"@"+killTag, content(t, s, h.name+"-tag"), min(h.flushed, cut), cut)
		}
		put(t, s, h.name, bytes.Repeat([]byte{0xff}, 4096), 0)
	}
	consistent(t, s, nil)
	return promoted
}

// check requires in every sector the content of its last write up to flushed, or of a later write
// up to most.
func (h *history) check(t *testing.T, what string, got []byte, flushed, most int) {
	t.Helper()
	for s := range len(got) / killSector {
		legal := []int{0}
		for _, k := range h.at[s] {
			switch {
			case k <= flushed:
				legal = []int{k}
			case k <= most:
				legal = append(legal, k)
			}
		}
		sector := got[s*killSector : (s+1)*killSector]
		if !slices.Contains(legal, int(sector[0])) ||
			bytes.Count(sector, sector[:1]) != killSector {
			t.Errorf("%s: sector %d holds write %d, expected one of %v", what, s, sector[0], legal)
		}
	}
}

// A disk with a shared map is not promoted to a head without one: there may be no memory,
// descriptor or permission for it at the moment.
func TestPromotionKeepsASharedMap(t *testing.T) {
	var failing atomic.Pointer[string]
	m := faultfs.New()
	p := m.Process(func(c faultfs.Call) faultfs.Fault {
		if op := failing.Load(); op != nil && strings.Contains(*op, c.Op) &&
			strings.HasPrefix(c.Name, faultfs.MemoryDir) {
			return faultfs.Fault{Err: syscall.ENOMEM}
		}
		return faultfs.Fault{}
	})
	s, err := Open("/store", Options{FS: p, Log: slog.New(slog.DiscardHandler),
		Getenv: func(string) string { return faultfs.MemoryDir }})
	test.Must(t, err)
	test.Must(t, test.Err(s.Create(ctx, "vm", CreateOptions{Size: 65536})))
	o, err := s.OpenDisk(ctx, "vm", OpenOptions{Serve: true})
	test.Must(t, err)
	defer o.Close()
	if h := o.Disk.Layers()[0]; h.Generation == 0 {
		t.Fatal("the disk has no shared map")
	}
	for _, op := range []string{"stat mkdir", "create", "reserve", "map"} {
		failing.Store(&op)
		pend, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
		if !errors.Is(err, layer.ErrNoShared) || !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("%s fails: expected %v and ENOMEM, found %v", op, layer.ErrNoShared, err)
		}
		if err == nil {
			pend.Close(false)
		}
	}
	failing.Store(nil)
	pend, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
	test.Must(t, err)
	if !pend.Heads()[0].Bitmap().Shared() {
		t.Error("the new head has no shared map")
	}
	pend.Close(false)
}
