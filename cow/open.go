package cow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/aio"
	"cowblk/cow/index"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// plainBlockSize is the block size of a disk that is only a base.
const plainBlockSize = layer.DefaultBlockSize

// stack is what Open has opened so far.
type stack struct {
	fs         vfs.FS
	log        *slog.Logger
	base       vfs.File // nil: none
	baseStart  int64    // byte of the file
	baseSize   int64    // bytes from there on
	baseSum    layer.Fingerprint
	layers     []*layer.Layer
	layerPaths []layer.Paths // of all layers to open
	size       int64         // of the disk
	blockSize  int64
	sources    sources
	view       *view
	sharedDir  string // Options.SharedDir
	unflushed  layer.Unflushed
	forceShare bool // Options.ForceShare
}

// Open opens a stack: it checks that base and layers belong together and builds the index. Base and
// layers are opened for reading, and last the head for writing: a refused open has modified
// nothing. A layer below the head that is not sealed, as a crash during a promotion leaves it, is
// sealed once everything else has succeeded.
//
// Errors wrap ErrSpec, ErrBaseChanged, those of package layer, or the operating system's.
func Open(s Spec, o Options) (*Disk, error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = DefaultFlushInterval
	}
	if err := errors.Join(s.check(), CheckFlushInterval(o.FlushInterval)); err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	k := &stack{layerPaths: s.Layers, fs: o.FS, log: o.Log,
		sources:   sources{fs: o.FS, direct: o.Direct, mapped: new(atomic.Int64)},
		sharedDir: o.SharedDir, unflushed: o.Unflushed, forceShare: o.ForceShare}
	ix, err := k.open(s)
	var d *Disk
	if err == nil {
		if err = k.makeView(s); err == nil {
			if d, err = k.newDisk(s, o, ix); err != nil {
				_ = k.view.close()
			}
		}
		if err != nil {
			ix.Close()
		}
	}
	if err != nil {
		_ = closeFiles(k.base, k.layers, false, nil)
		return nil, fmt.Errorf("open disk: %w", err)
	}
	return d, nil
}

func (s *Spec) check() error {
	switch {
	case s.Raw && (len(s.Layers) > 0 || s.ReadOnly || s.Base == nil):
		return fmt.Errorf("%w: expected a base alone for a raw disk that is written", ErrSpec)
	case len(s.Layers) == 0 && !s.ReadOnly && !s.Raw:
		return fmt.Errorf("%w: expected a head, found no layers", ErrSpec)
	case len(s.Layers) == 0 && s.Base == nil:
		return fmt.Errorf("%w: expected a base or layers, found neither", ErrSpec)
	case len(s.Layers) >= int(^index.Owner(0)):
		return fmt.Errorf("%w: expected fewer than %d layers, found %d", ErrSpec, ^index.Owner(0),
			len(s.Layers))
	case s.Base != nil && (s.Base.Offset < 0 || s.Base.Size < 0):
		return fmt.Errorf("%w: base %s: expected offset and size from 0 up, found %d and %d",
			ErrSpec, s.Base.Path, s.Base.Offset, s.Base.Size)
	}
	return nil
}

func (k *stack) open(s Spec) (*index.Index, error) {
	switch {
	case s.Raw:
		if err := k.openRaw(s.Base); err != nil {
			return nil, err
		}
	case s.Base != nil:
		if err := k.openBase(s.Base); err != nil {
			return nil, err
		}
	}
	if len(s.Layers) == 0 {
		k.size, k.blockSize = k.baseSize/layer.SectorSize*layer.SectorSize, plainBlockSize
	} else if err := k.openLayers(s); err != nil {
		return nil, err
	}
	sources := make([]index.Source, len(k.layers))
	for i, l := range k.layers {
		sources[i] = l.Source()
	}
	ix, err := index.Build(k.blocks(), sources)
	if err != nil {
		return nil, err
	}
	if len(k.layers) > 0 && !s.ReadOnly {
		if err := k.sealFormerHeads(); err != nil {
			ix.Close()
			return nil, err
		}
	}
	return ix, nil
}

func (k *stack) blocks() uint64 { return uint64((k.size + k.blockSize - 1) / k.blockSize) }

// sealFormerHeads seals the layers below the head that a crash left unsealed. A layer that another
// process is reading stays unsealed until the next open: it is never written again. Its unflushed
// bits are made durable in any case, for no flush of this disk covers it.
func (k *stack) sealFormerHeads() error {
	for i, l := range k.layers[:len(k.layers)-1] {
		if l.Header().State == layer.Sealed {
			continue
		}
		paths, id := l.Paths(), l.Header().UUID
		err := l.Close() // its shared lock would exclude us
		if err == nil {
			k.layers[i], err = k.sealFormerHead(paths, id)
		}
		if err != nil {
			k.layers = append(k.layers[:i:i], k.layers[i+1:]...)
			return err
		}
	}
	return nil
}

func (k *stack) sealFormerHead(p layer.Paths, id uuid.UUID) (*layer.Layer, error) {
	l, err := layer.Open(k.fs, p, layer.OpenParams{Write: true, Expect: layer.Expect{UUID: id},
		Unflushed: k.unflushed})
	switch {
	case err == nil:
		if err = l.Seal(time.Now()); err == nil {
			err = l.Close()
		} else {
			_ = l.Abandon()
		}
		if err != nil {
			return nil, err
		}
		k.log.Info("sealed a former head that an interrupted promotion had left unsealed",
			"map", p.Map)
	case errors.Is(err, layer.ErrInUse), errors.Is(err, layer.ErrSealed):
		// Another process reads it, or has just sealed it.
	default:
		return nil, err
	}
	l, err = layer.Open(k.fs, p, layer.OpenParams{Expect: layer.Expect{UUID: id},
		Unflushed: k.unflushed})
	if err != nil || l.Header().State == layer.Sealed {
		return l, err
	}
	k.log.Warn("a former head stays unsealed until the next open: another process reads it",
		"map", p.Map)
	if err := l.MakeDurable(); err != nil {
		return nil, errors.Join(err, l.Abandon())
	}
	return l, nil
}

// makeView makes the first view of the stack, with its sources.
func (k *stack) makeView(s Spec) error {
	v := &view{seq: 1, headSince: 1, oldWritersGone: new(atomic.Bool),
		top: index.Owner(len(k.layers))}
	v.oldWritersGone.Store(true) // there was no view before it
	var base source              // empty without a base
	if k.base != nil {
		var err error
		if base, err = k.sources.open(k.base, s.Base.Path, k.baseStart, k.baseSize,
			s.Raw); err != nil {
			return err
		}
	}
	v.sources = append(v.sources, base)
	for _, l := range k.layers {
		src, err := k.sources.openLayer(l)
		if err != nil {
			return errors.Join(err, v.close())
		}
		v.sources = append(v.sources, src)
	}
	if !s.Raw && !s.ReadOnly {
		v.head, v.bitmap = v.top, k.layers[len(k.layers)-1].Bitmap()
	}
	k.view = v
	return nil
}

// newDisk makes a Disk of an opened stack and starts its flusher.
func (k *stack) newDisk(s Spec, o Options, ix *index.Index) (*Disk, error) {
	d := &Disk{
		size: k.size, blockSize: k.blockSize, blocks: k.blocks(),
		shift:    uint(bits.TrailingZeros64(uint64(k.blockSize))),
		readOnly: s.ReadOnly, zeroBlock: make([]byte, k.blockSize), index: ix,
		log: k.log, base: k.base, layers: k.layers, sources: k.sources,
		loseUnflushed: o.LoseUnflushed, onNoSpace: o.OnNoSpace,
		newEngine: aio.New,
	}
	if o.OnFailure != nil {
		d.NotifyFailure(o.OnFailure)
	}
	d.lifetime, d.endLifetime = context.WithCancel(context.Background())
	d.threadPool = newThreadPool(d)
	d.synchronizing.cond.L = &d.synchronizing.mu
	d.baseBlocks = min(d.blocks, uint64((k.baseSize+k.blockSize-1)/k.blockSize))
	d.channels.Store(&[]*Channel{})

	var err error
	switch {
	case s.Raw: // owner 0 is the head, which owns every block
		d.flusher, err = startFlusher(d, nil, k.base, o.FlushInterval)
	case !s.ReadOnly:
		d.flusher, err = startFlusher(d, k.layers[len(k.layers)-1:len(k.layers):len(k.layers)], nil,
			o.FlushInterval)
	}
	d.view.Store(k.view)
	if err == nil && k.headUnclean() {
		d.flusher.startTimer()
	}
	return d, err
}

// headUnclean reports whether the head was not closed in order: it may hold unflushed writes of an
// earlier process.
func (k *stack) headUnclean() bool {
	n := len(k.layers)
	return n > 0 && k.view.bitmap != nil && k.layers[n-1].Unclean()
}
