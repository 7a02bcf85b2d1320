package main

import (
	"encoding/json"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/printers"
)

// printScales lays out the scale subresources of objects.
func (a *app) printScales(p printers.ResourcePrinter, g group, now time.Time) error {
	t := &metav1.Table{}
	t.ColumnDefinitions = definitions("Name,Desired,Available,Age")
	for _, r := range g.rows {
		var s autoscalingv1.Scale
		if err := json.Unmarshal(r.raw, &s); err != nil {
			return fmt.Errorf("read scale from the server: %w", err)
		}
		t.Rows = append(t.Rows, metav1.TableRow{
			Cells:  []any{s.Name, s.Spec.Replicas, s.Status.Replicas, age(s.CreationTimestamp.Time, now)},
			Object: runtime.RawExtension{Object: &s},
		})
	}
	return a.writeTable(p, t)
}
