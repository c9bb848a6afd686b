package layer

import (
	"fmt"
	"math/bits"
)

// Leave closes the files of a head for another process to go on with, at once:
// nothing is synced, and the head is not marked clean. What the kernel has of the
// data stays there. The bits that are not in the map file yet are returned, for
// OpenParams.Carried. A head whose sync has failed is left too, but with an error:
// nobody must go on with it as if nothing had happened.
func (l *Layer) Leave() ([]DirtyPage, error) {
	if err := l.writable(); err != nil {
		return nil, err
	}
	pages := l.Bitmap().TakeDirty(nil)
	return pages, l.Abandon()
}

// carry adds bits that the head's last process knew of and had not written to the
// map. They are dirty again: the next flush makes them durable, after the data.
func (l *Layer) carry(pages []DirtyPage) error {
	h, b := &l.header, l.bitmap
	if h.State != Head || h.Clean {
		return &Fault{What: "state", Expected: "a head that another process has just left", Found: describe(h), Advice: adviceFiles, Err: ErrMismatch}
	}
	end := uint64(0)
	for i := range pages {
		p := &pages[i]
		last := len(p.Words) - 1
		for last >= 0 && p.Words[last] == 0 {
			last--
		}
		if last < 0 {
			continue
		}
		if p.Page >= h.MapPages() {
			return fmt.Errorf("page %d of the map was handed over, expected fewer than %d: %w", p.Page, h.MapPages(), ErrMismatch)
		}
		top := p.Page*blocksPerPage + uint64(last)*64 + uint64(bits.Len64(p.Words[last]))
		if top > h.Blocks() {
			return fmt.Errorf("block %d was handed over, expected blocks up to %d: %w", top-1, h.Blocks()-1, ErrMismatch)
		}
		end = max(end, top)
		b.merge(p)
	}
	return l.checkData(end)
}

func describe(h *Header) string {
	if h.Clean {
		return h.State.String() + ", closed cleanly"
	}
	return h.State.String()
}

// merge sets the bits of a page that nobody else uses yet.
func (b *Bitmap) merge(p *DirtyPage) {
	first := p.Page * blocksPerPage
	for i, w := range p.Words {
		for w != 0 {
			start := uint64(bits.TrailingZeros64(w))
			run := uint64(bits.TrailingZeros64(^(w >> start)))
			b.Set(first+uint64(i)*64+start, run)
			if start+run == 64 {
				break
			}
			w &^= (1<<(start+run) - 1)
		}
	}
}
