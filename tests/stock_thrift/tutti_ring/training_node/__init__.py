__all__ = ['ttypes', 'constants', 'TrainingNode']
