__all__ = ['ttypes', 'constants', 'Supernode']
