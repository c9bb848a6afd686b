package cow

import (
	"errors"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// survival keeps the maps of a disk's heads where they survive the process; the
// zero value does not.
type survival struct {
	place     layer.LivePlace
	elsewhere map[uuid.UUID]string // Options.LiveElsewhere
	on        bool
}

// of is where the live file of a layer is.
func (s *survival) of(id uuid.UUID) layer.LivePlace {
	p := s.place
	if dir, ok := s.elsewhere[id]; ok {
		p.Dir = dir
	}
	return p
}

// newSurvival prepares for live files in dir; empty: none. It reads what a
// confined process could not.
func (k *stack) newSurvival(fsys vfs.FS, dir string, elsewhere map[uuid.UUID]string) (s survival) {
	survivor, ok := fsys.(vfs.Survivor)
	if dir == "" || !ok {
		return s
	}
	boot, err := survivor.Boot()
	if err != nil {
		k.mortal(err)
		return s
	}
	return survival{place: layer.LivePlace{FS: survivor, Dir: dir, Boot: boot}, elsewhere: elsewhere, on: true}
}

func (k *stack) mortal(err error) {
	k.log.Warn("if this process dies, what the guest has not flushed is lost to it", "err", err)
}

// takeUp takes up what a process that died knew of the layers that are not sealed,
// and puts the map of the head where it survives this one. Only a live file that
// contradicts its layer is an error.
func (k *stack) takeUp(write bool) error {
	if !k.live.on {
		return nil
	}
	for i, l := range k.layers {
		var err error
		switch {
		case l.Header().State == layer.Sealed:
			continue
		case write && i == len(k.layers)-1:
			err = l.Survive(k.live.place)
		default:
			err = l.Recall(k.live.of(l.Header().UUID))
		}
		if errors.Is(err, layer.ErrDamaged) {
			return err
		}
		if err != nil {
			k.mortal(err)
		}
	}
	return nil
}

// tidy removes live files that the stack has no use for.
func (k *stack) tidy() {
	if !k.live.on {
		return
	}
	var keep []uuid.UUID
	for _, l := range k.layers {
		if h := l.Header(); h.State != layer.Sealed {
			keep = append(keep, h.UUID)
		}
	}
	if err := k.live.place.Tidy(keep); err != nil {
		k.log.Warn("live files are left over", "err", err)
	}
}
