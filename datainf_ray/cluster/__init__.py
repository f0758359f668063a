"""Spreading and gathering: the workers, their queue, the fixed tree that sums what they send. Only this knows Ray."""
