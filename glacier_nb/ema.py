import copy
class WeightAverage:
    def __init__(self, model, decay): self.model=copy.deepcopy(model); self.decay=decay
    def update(self, step): self.model.load_state_dict(self._raw.state_dict()) if hasattr(self,'_raw') else None
    def state_dict(self): return {"model": self.model.state_dict()}
    def load_state_dict(self, s): self.model.load_state_dict(s["model"])
