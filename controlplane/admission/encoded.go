package admission

import (
	"encoding/json"
	"sync"

	"gantry.dev/schemas"
)

// maxEncoded bounds the memory of objects that are kept as JSON, in bytes.
const maxEncoded = 8 << 20

// encoded keeps the JSON of objects that were read lately. Who waits for pods
// lists them again and again, and most have not changed in between: making
// their JSON anew was most of what a list cost. It is safe for concurrent use;
// the zero value is ready.
type encoded struct {
	mu   sync.Mutex
	kept map[string]encoding
	size int
}

type encoding struct {
	of   schemas.Object // the very object of the view, which never changes
	data []byte
}

// of returns the JSON of an object of the view. It is shared: nobody changes it.
func (e *encoded) of(o schemas.Object) ([]byte, error) {
	key := schemas.KeyOf(o)
	e.mu.Lock()
	have, ok := e.kept[key]
	e.mu.Unlock()
	if ok && have.of == o {
		return have.data, nil
	}
	data, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.size += len(data) - len(e.kept[key].data)
	// When it is full all goes: an order of use to keep would cost more than
	// what is then made again.
	if e.kept == nil || e.size > maxEncoded {
		e.kept, e.size = map[string]encoding{}, len(data)
	}
	e.kept[key] = encoding{of: o, data: data}
	return data, nil
}
