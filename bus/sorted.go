package bus

import (
	"slices"
	"sort"
	"strings"

	"gantry.dev/schemas"
)

// blockSize bounds what one insertion moves. Two blocks of this size hold a
// thousand objects, so most lists are one or two runs of memory.
const blockSize = 512

// sortedSet is objects in the order of their keys. Insertion and removal cost
// a binary search and a move within one block, listing is a walk; it needs no
// rebalancing and no pointers between objects.
type sortedSet struct {
	blocks [][]sortedItem // none is empty
	n      int
}

type sortedItem struct {
	key string
	obj schemas.Object
}

func (s *sortedSet) len() int { return s.n }

// find returns the block that holds the key or is the place for it, and the
// place within.
func (s *sortedSet) find(key string) (block, at int, found bool) {
	block = sort.Search(len(s.blocks), func(i int) bool {
		b := s.blocks[i]
		return b[len(b)-1].key >= key
	})
	if block == len(s.blocks) {
		return block, 0, false
	}
	at, found = slices.BinarySearchFunc(s.blocks[block], key, func(it sortedItem, key string) int {
		return strings.Compare(it.key, key)
	})
	return block, at, found
}

func (s *sortedSet) put(key string, obj schemas.Object) {
	b, at, found := s.find(key)
	if found {
		s.blocks[b][at].obj = obj
		return
	}
	s.n++
	if b == len(s.blocks) { // beyond the last key
		if b == 0 {
			s.blocks = append(s.blocks, []sortedItem{{key, obj}})
			return
		}
		b--
		at = len(s.blocks[b])
	}
	s.blocks[b] = slices.Insert(s.blocks[b], at, sortedItem{key, obj})
	if full := s.blocks[b]; len(full) > blockSize {
		half := len(full) / 2
		upper := slices.Clone(full[half:])
		clear(full[half:]) // let go of the objects that moved
		s.blocks[b] = full[:half]
		s.blocks = slices.Insert(s.blocks, b+1, upper)
	}
}

func (s *sortedSet) remove(key string) {
	b, at, found := s.find(key)
	if !found {
		return
	}
	s.n--
	s.blocks[b] = slices.Delete(s.blocks[b], at, at+1)
	if len(s.blocks[b]) == 0 {
		s.blocks = slices.Delete(s.blocks, b, b+1)
	}
}

// prefixed returns the objects whose keys begin with the prefix, in order.
func (s *sortedSet) prefixed(prefix string) []schemas.Object {
	if prefix == "" {
		out := make([]schemas.Object, 0, s.n)
		for _, block := range s.blocks {
			for _, it := range block {
				out = append(out, it.obj)
			}
		}
		return out
	}
	var out []schemas.Object
	b, at, _ := s.find(prefix)
	for ; b < len(s.blocks); b, at = b+1, 0 {
		for _, it := range s.blocks[b][at:] {
			if !strings.HasPrefix(it.key, prefix) {
				return out
			}
			out = append(out, it.obj)
		}
	}
	return out
}

// walk calls fn for the items whose keys begin with the prefix and are not
// before begin, in order.
func (s *sortedSet) walk(prefix, begin string, fn func(sortedItem)) {
	b, at, _ := s.find(max(prefix, begin))
	for ; b < len(s.blocks); b, at = b+1, 0 {
		for _, it := range s.blocks[b][at:] {
			if !strings.HasPrefix(it.key, prefix) {
				return
			}
			fn(it)
		}
	}
}
