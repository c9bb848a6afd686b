package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/integration/bench/compare/report"
)

// A large disk has 32 sealed layers of 5 % each and an empty head.
const (
	largeSize   = 1 << 40
	largeLayers = 32
	largeShare  = 20 // each owns one block in 20
)

// scattered sets the bits of single blocks at random places.
func scattered(b *layer.Bitmap, random *rand.Rand) {
	for block := random.Uint64N(largeShare); block < b.Blocks(); block += 1 + random.Uint64N(
		2*largeShare-1) {
		b.Set(block, 1)
	}
}

// largeFiles sets the bits of runs of 64 MiB.
func largeFiles(b *layer.Bitmap, random *rand.Rand) {
	const run = 64 * mib / layer.DefaultBlockSize
	runs := b.Blocks() / run
	for range runs / largeShare {
		b.Set(random.Uint64N(runs)*run, run)
	}
}

// openLarge makes such a disk, opens it several times in this process, and records the time and the
// size of the index. The maps are in the page cache: they have just been written.
func (s *site) openLarge(ctx context.Context, name string, own func(*layer.Bitmap, *rand.Rand),
	indexKey, timeKey, what string) error {
	dir := s.path("large-" + name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spec := cow.Spec{}
	var parent uuid.UUID
	for n := range largeLayers + 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := layer.Paths{Map: filepath.Join(dir, fmt.Sprintf("%d.map", n)), Data: filepath.Join(dir,
			fmt.Sprintf("%d.data", n))}
		id, err := makeLayer(p, parent, n < largeLayers, func(b *layer.Bitmap) {
			own(b, rand.New(rand.NewPCG(5, uint64(n))))
		})
		if err != nil {
			return fmt.Errorf("layer %d of a disk of 1 TiB: %w", n, err)
		}
		parent = id
		spec.Layers = append(spec.Layers, p)
	}
	var times []float64
	var index int64
	for range 3 {
		start := time.Now()
		d, err := cow.Open(spec, cow.Options{})
		if err != nil {
			return err
		}
		times = append(times, time.Since(start).Seconds())
		index = d.Stats().IndexBytes
		if err := d.Close(); err != nil {
			return err
		}
	}
	what = fmt.Sprintf("1 TiB, %d layers, %s", largeLayers, what)
	s.results.AddSingle(indexKey, "index of "+what, float64(index), "bytes")
	s.results.AddSingle(timeKey, "opening "+what, report.Median(times), "s")
	return nil
}

// makeLayer makes a layer and optionally seals it.
func makeLayer(p layer.Paths, parent uuid.UUID, seal bool, own func(*layer.Bitmap)) (uuid.UUID,
	error) {
	l, err := layer.CreateHead(vfs.OS{}, p, layer.CreateParams{Size: largeSize, Parent: parent})
	if err != nil {
		return uuid.UUID{}, err
	}
	id := l.Header().UUID
	if seal {
		own(l.Bitmap())
		if err := l.Seal(time.Now()); err != nil {
			l.Abandon()
			return id, err
		}
	}
	return id, l.Close()
}
