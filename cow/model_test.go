package cow_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
)

// blockSizes are all block sizes of the format.
var blockSizes = []uint32{512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}

// TestModel compares random operations on random stacks of every block size with the model: many
// channels, overlapping in time and with promotions, and reopened in between. COWBLK_MODEL_OPS
// is the total number of operations (48,000 unless set), COWBLK_MODEL_SEED repeats a run.
func TestModel(t *testing.T) {
	total := envInt(t, "COWBLK_MODEL_OPS", 48_000)
	seed := uint64(envInt(t, "COWBLK_MODEL_SEED", int(time.Now().UnixNano()&0xffffffff)))
	for _, bs := range blockSizes {
		t.Run(strconv.Itoa(int(bs)), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, uint64(bs)))
			start, ops, lives := time.Now(), 0, 0
			for want := total / len(blockSizes); ops < want; lives++ {
				n, err := newModelRun(t.TempDir(), rng, bs, want-ops).run()
				if err != nil {
					t.Fatalf("seed %d, life %d: %v", seed, lives, err)
				}
				ops += n
			}
			t.Logf("%d operations on %d disks in %.1f s (seed %d)", ops, lives,
				time.Since(start).Seconds(), seed)
		})
	}
}

func envInt(t *testing.T, name string, otherwise int) int {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: expected a number, found %q", name, s)
	}
	return n
}

// shape returns a random disk of some 60 blocks to 2 MiB: rarely a multiple of the block size, with
// a base that is absent, shorter or longer, at any sector.
func shape(rng *rand.Rand, bs uint32) cowtest.Shape {
	s := cowtest.Shape{BlockSize: bs}
	s.Size = max(60*int64(bs), 64<<10) + rng.Int64N(1<<20)
	s.Size -= s.Size % cowtest.SectorSize
	switch rng.IntN(4) {
	case 0:
		return s
	case 1:
		s.BaseSize = s.Size/2 + rng.Int64N(s.Size/4)
	case 2:
		s.BaseSize = s.Size + rng.Int64N(s.Size/4)
	default:
		s.BaseSize = s.Size
	}
	s.BaseSize -= s.BaseSize % cowtest.SectorSize
	s.BaseOffset = rng.Int64N(100) * cowtest.SectorSize
	return s
}

// modelRun is one disk from creation to end: phases of concurrent operations, each followed by a
// check of the whole disk.
type modelRun struct {
	dir        string
	rng        *rand.Rand
	bs         uint32
	most       int  // operations
	async      bool // channels
	direct     bool // I/O
	dropCaches bool // page caches are dropped during operations
	onOpen     func(*cow.Disk)
}

func newModelRun(dir string, rng *rand.Rand, bs uint32, most int) *modelRun {
	return &modelRun{dir: dir, rng: rng, bs: bs, most: most}
}

func (f *modelRun) run() (done int, err error) {
	rng, most := f.rng, f.most
	rig, err := cowtest.NewRig(f.dir, vfs.OS{}, shape(rng, f.bs))
	if err != nil {
		return 0, err
	}
	rig.Direct, rig.OnOpen = f.direct, f.onOpen
	if err := rig.Reopen(); err != nil {
		return 0, err
	}
	defer func() {
		if e := rig.Close(); err == nil {
			err = e
		}
	}()
	m := cowtest.NewModel(rig.Shape.Size, min(rig.Shape.BaseSize, rig.Shape.Size))
	tags := map[int][sha256.Size]byte{} // content by number of layers
	sums := map[string][sha256.Size]byte{}
	phases := 3 + rng.IntN(6)
	for phase := 0; phase < phases && done < most; phase++ {
		n, err := f.phase(rig, m, min(most-done, 400+rng.IntN(6000)))
		if err != nil {
			return 0, fmt.Errorf("%+v, phase %d, depth %d: %w", rig.Shape, phase, rig.Disk.Depth(),
				err)
		}
		done += n
		content, err := cowtest.ReadAll(rig.Disk)
		if err != nil {
			return 0, err
		}
		if err := m.CheckIdle(content, 0); err != nil {
			return 0, fmt.Errorf("%+v, after phase %d: %w", rig.Shape, phase, err)
		}
		if rng.IntN(2) == 0 {
			tags[len(rig.Spec.Layers)] = sha256.Sum256(content)
			p, err := rig.Promote()
			if err != nil {
				return 0, err
			}
			<-p.Done()
			if p.Err() != nil {
				return 0, p.Err()
			}
			if sums, err = rig.Hashes(len(rig.Spec.Layers) - 1); err != nil {
				return 0, err
			}
		}
		if rng.IntN(2) == 0 {
			if err := rig.Reopen(); err != nil {
				return 0, err
			}
			content, err := cowtest.ReadAll(rig.Disk)
			if err != nil {
				return 0, err
			}
			if err := m.CheckIdle(content, 0); err != nil {
				return 0, fmt.Errorf("%+v, reopened after phase %d: %w", rig.Shape, phase, err)
			}
		}
	}
	return done, checkTags(rig, tags, sums)
}

// phase runs n operations on some channels, with promotions in between.
func (f *modelRun) phase(rig *cowtest.Rig, m *cowtest.Model, n int) (int, error) {
	rng := f.rng
	channels := 1 + rng.IntN(6)
	r := cowtest.Run{Disk: rig.Disk, Model: m, Seed: rng.Uint64(), Async: f.async}
	if f.dropCaches {
		defer f.dropCachesRepeatedly(rig.Dir)()
	}
	for range channels {
		mix := cowtest.Mix{Size: rig.Shape.Size, BlockSize: int64(rig.Shape.BlockSize)}
		r.Scripts = append(r.Scripts, cowtest.Script(rng, mix, n/channels))
	}
	promotions := rng.IntN(4)
	ended := make(chan error, 1)
	go func() { ended <- r.Go() }()
	for i := range promotions {
		at := int64(n/channels*channels) * int64(i+1) / int64(promotions+1)
		for r.Progress.Load() < at {
			select {
			case err := <-ended:
				return 0, err
			case <-time.After(100 * time.Microsecond):
			}
		}
		p, err := rig.Promote()
		if err != nil {
			<-ended
			return 0, err
		}
		defer func() { <-p.Done() }()
	}
	return n / channels * channels, <-ended
}

// dropCachesRepeatedly drops the page cache of a stack's files repeatedly, of layers that are new
// too and of pages that the disk has mapped, until stop is called.
func (f *modelRun) dropCachesRepeatedly(dir string) (stop func()) {
	ended, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			pageOut(dir)
			names, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil {
				panic(err)
			}
			for _, name := range names {
				fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					panic(err)
				}
				unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
				unix.Close(fd)
			}
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() { close(end); <-ended }
}

// pageOut has the kernel reclaim the pages of this process's mappings of files in dir.
func pageOut(dir string) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if !strings.Contains(line, " "+dir+"/") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil {
			// The mapping may be gone by now.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_PAGEOUT)
		}
	}
}

// checkTags opens every tag and compares it with the disk at the time of the tag, and the bytes of
// all sealed files with those at that time.
func checkTags(rig *cowtest.Rig, tags map[int][sha256.Size]byte,
	sums map[string][sha256.Size]byte) error {
	if err := rig.Close(); err != nil {
		return err
	}
	for layers, sum := range tags {
		d, err := rig.OpenTag(layers)
		if err != nil {
			return err
		}
		content, err := cowtest.ReadAll(d)
		if err != nil {
			return err
		}
		if sha256.Sum256(content) != sum {
			return fmt.Errorf("the tag of %d layers has changed", layers)
		}
		if err := d.Close(); err != nil {
			return err
		}
	}
	now, err := rig.Hashes((len(sums)) / 2)
	if err != nil {
		return err
	}
	for name, sum := range sums {
		if now[name] != sum {
			return fmt.Errorf("%s has changed since it was sealed (%d of %d compared)", name,
				len(now), len(sums))
		}
	}
	return nil
}
