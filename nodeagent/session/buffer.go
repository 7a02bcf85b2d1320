package session

// output holds what the client has not acknowledged, as runs of bytes of one
// channel each, in the order in which they were read.
type output struct {
	base int64 // bytes that were acknowledged
	buf  []byte
	runs []run
}

type run struct {
	channel string
	n       int
}

func (o *output) room() int   { return max(bufferBytes-len(o.buf), 0) }
func (o *output) empty() bool { return len(o.buf) == 0 }
func (o *output) end() int64  { return o.base + int64(len(o.buf)) }

func (o *output) add(channel string, b []byte) {
	if len(b) == 0 {
		return
	}
	o.buf = append(o.buf, b...)
	if n := len(o.runs); n > 0 && o.runs[n-1].channel == channel {
		o.runs[n-1].n += len(b)
		return
	}
	o.runs = append(o.runs, run{channel, len(b)})
}

// forget drops what lies before the cursor, which is not after the end.
func (o *output) forget(cursor int64) {
	n := int(cursor - o.base)
	if n <= 0 {
		return
	}
	o.base = cursor
	o.buf = append(o.buf[:0], o.buf[n:]...)
	i := 0
	for n > 0 && n >= o.runs[i].n {
		n -= o.runs[i].n
		i++
	}
	o.runs = append(o.runs[:0], o.runs[i:]...)
	if n > 0 {
		o.runs[0].n -= n
	}
	if len(o.buf) == 0 { // most sessions are silent most of the time
		o.buf, o.runs = nil, nil
	}
}

// piece is the first run, at most limit bytes of it. It is a copy.
func (o *output) piece(limit int) (channel string, b []byte) {
	if len(o.runs) == 0 {
		return "", nil
	}
	return o.runs[0].channel, append([]byte(nil), o.buf[:min(o.runs[0].n, limit)]...)
}

func (o *output) clear() {
	o.base, o.buf, o.runs = o.end(), nil, nil
}

// input holds what the client has sent and the work has not taken.
type input struct {
	present bool
	buf     []byte
	total   int64 // bytes that were taken from the client in all
	last    bool  // nothing comes after total
	over    bool  // the work takes no more; what comes is thrown away
}

// take takes what of b, which begins at offset, is new and has room. It reports
// whether all of b is here now.
func (i *input) take(offset int64, b []byte) bool {
	if i.over {
		i.total = max(i.total, offset+int64(len(b)))
		return true
	}
	if offset > i.total {
		return false
	}
	known := min(i.total-offset, int64(len(b)))
	b = b[known:]
	if len(b) == 0 {
		return true
	}
	if i.last {
		return false
	}
	n := min(len(b), bufferBytes-len(i.buf))
	i.buf = append(i.buf, b[:n]...)
	i.total += int64(n)
	return n == len(b)
}

func (i *input) written(n int) {
	if i.over {
		return
	}
	i.buf = append(i.buf[:0], i.buf[n:]...)
	if len(i.buf) == 0 {
		i.buf = nil
	}
}

func (i *input) end() {
	i.over, i.buf = true, nil
}
